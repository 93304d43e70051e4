"""The files of a Vitis HLS project: top function, layers, testbench, driver of the simulation, Tcl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .arrays import wrapped
from .design import Design, Process, Wire
from .source import Code, code
from .storage import fifo_storage

TEMPLATES = Path(__file__).parent / "templates"
_HEADER = "// Written by tersor. Edit folding.json and lower again rather than this file.\n"
_INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class Project:
    """What the files are made from. name: of the top function. depths: of each stream's FIFO, in beats."""

    name: str
    design: Design
    depths: Mapping[str, int]

    @cached_property
    def codes(self) -> dict[str, Code]:
        """The C++ of each process, by name."""
        return {process.name: code(process) for process in self.design.processes}

    def files(self) -> dict[str, str]:
        """Every generated source, by its path in the project's folder."""
        layers = {f"layers/{process.name}.h": self._layer(process) for process in self.design.processes}
        return {
            f"{self.name}.h": self._declaration(),
            f"{self.name}.cpp": self._top(),
            "simulate.cpp": self._filled("simulate.cpp"),
            "testbench.cpp": self._filled("testbench.cpp"),
            **layers,
        }

    # -- the top function ------------------------------------------------------------------------------------------

    def _ports(self) -> list[Wire]:
        return [wire for _, wire in (*self.design.inputs, *self.design.outputs)]

    def memories(self) -> dict[str, str]:
        """Processes that read weights from outside the chip, and the type of what they read."""
        return {name: found.memory for name, found in self.codes.items() if found.memory is not None}

    def _signature(self) -> str:
        streams = [f"hls::stream<{_beat(wire)}> &{wire.stream.name}" for wire in self._ports()]
        memories = [f"const {kind} *{name}_memory" for name, kind in self.memories().items()]
        return f"void {self.name}({', '.join([*streams, *memories])})"

    def _declaration(self) -> str:
        guard = f"TERSOR_{self.name.upper()}_H"
        headers = sorted({found.header for found in self.codes.values()})
        includes = "\n".join(f'#include "kernels/{header}"' for header in ("beat.h", *headers))
        return f"{_HEADER}#ifndef {guard}\n#define {guard}\n\n{includes}\n\n{self._signature()};\n\n#endif\n"

    def _top(self) -> str:
        lines = [
            f'#include "{self.name}.h"',
            *(f'#include "layers/{name}.h"' for name in self.codes),
            "",
            f"{self._signature()} {{",
            *(f"#pragma HLS INTERFACE axis port = {wire.stream.name}" for wire in self._ports()),
            *self._memory_pragmas(),
            "#pragma HLS INTERFACE ap_ctrl_chain port = return",
            "#pragma HLS DATAFLOW",
        ]
        ports = {wire.stream.name for wire in self._ports()}
        for wire in self.design.wires:
            name = wire.stream.name
            if name not in ports:
                lines.append(f'    hls::stream<{_beat(wire)}> {name}("{name}");')
                depth = self.depths.get(name, 2)
                lines.append(f"#pragma HLS STREAM variable = {name} depth = {depth}")
                storage = fifo_storage(depth).value
                lines.append(f"#pragma HLS BIND_STORAGE variable = {name} type = fifo impl = {storage}")
        for process in self.design.processes:
            lines += ["", *_comment(process), *_call(process, self.codes[process.name])]
        return _HEADER + "\n".join([*lines, "}", ""])

    def _memory_pragmas(self) -> list[str]:
        return [
            f"#pragma HLS INTERFACE m_axi port = {name}_memory offset = slave bundle = weights_{index}"
            for index, name in enumerate(self.memories())
        ]

    def _layer(self, process: Process) -> str:
        found = self.codes[process.name]
        guard = f"TERSOR_LAYER_{process.name.upper()}_H"
        of = process.layer.node if process.layer else process.writes[0].stream.node
        return "\n".join(
            [
                f"{_HEADER}// {found.kernel} for %{of}.",
                f"#ifndef {guard}",
                f"#define {guard}",
                "",
                f'#include "../kernels/{found.header}"',
                "",
                f"namespace {process.name} {{",
                *_shape(found),
                *_constants(found),
                "",
                *_function(process, found),
                f"}} // namespace {process.name}",
                "",
                "#endif",
                "",
            ]
        )

    # -- what runs it ----------------------------------------------------------------------------------------------

    def _call(self) -> str:
        streams = [wire.stream.name for wire in self._ports()]
        memories = [f"{name}::weights" for name in self.memories()]
        return f"{self.name}({', '.join([*streams, *memories])});"

    def _frame(self) -> list[str]:
        """One frame through the top function: `take` gives the next input value, `give` gets the next output value."""
        lines = []
        for wire in self._ports():
            lines.append(f'    hls::stream<{_beat(wire)}> {wire.stream.name}("{wire.stream.name}");')
        for _, wire in self.design.inputs:
            lines += [
                f"    for (int i = 0; i < {wire.beats}; i++) {{",
                f"        {_beat(wire)} value;",
                f"        for (int lane = 0; lane < {wire.lanes}; lane++)",
                "            value.lane[lane] = take();",
                f"        {wire.stream.name}.write(value);",
                "    }",
            ]
        lines.append(f"    {self._call()}")
        for _, wire in self.design.outputs:
            lines += [
                f"    for (int i = 0; i < {wire.beats}; i++) {{",
                f"        const {_beat(wire)} value = {wire.stream.name}.read();",
                f"        for (int lane = 0; lane < {wire.lanes}; lane++)",
                "            give(static_cast<long long>(value.lane[lane]));",
                "    }",
            ]
        return lines

    def _includes(self) -> list[str]:
        return [f'#include "{self.name}.h"', *(f'#include "layers/{name}.h"' for name in self.memories())]

    def _filled(self, template: str) -> str:
        """A source of `templates/`, about this design."""
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        return _HEADER + text.replace("@INCLUDES@", "\n".join(self._includes())).replace(
            "@FRAME@", "\n".join(self._frame())
        )


def _beat(wire: Wire) -> str:
    return f"beat<{wire.stream.bits}, {wire.lanes}>"


def _size(wire: Wire) -> str:
    return f"{wire.stream.pixels}x{wire.stream.channels} by {wire.lanes}"


def _comment(process: Process) -> list[str]:
    """What a process is, for who reads the top function."""
    sides = [", ".join(_size(wire) for wire in wires) for wires in (process.reads, process.writes)]
    sizes = " -> ".join(side for side in sides if side)
    what = f"%{process.layer.node}: {process.layer.kind}" if process.layer else "other lanes"
    return [f"    // {what}, {sizes}"]


def _shape(found: Code) -> list[str]:
    """The parameters of a kernel by name."""
    lines = ["struct shape {"]
    for name, value in found.shape.items():
        kind = "long long" if abs(int(str(value))) > _INT_MAX else "int"
        lines.append(f"    static constexpr {kind} {name} = {value};")
    if found.requantize:
        lines.append(f"    typedef {found.requantize}<shape> requantize;")
    return [*lines, "};"]


def _constants(found: Code) -> list[str]:
    lists = [array.constant() for array in found.arrays]
    return [line for lines in lists if lines for line in ("", *lines)]


def _function(process: Process, found: Code) -> list[str]:
    """The process: its memories, what its arrays are made from, and the call of its kernel."""
    wires = [*process.reads, *process.writes]
    names = [*_numbered("in", process.reads), *_numbered("out", process.writes)]
    streams = [f"hls::stream<{_beat(wire)}> &{name}" for wire, name in zip(wires, names, strict=True)]
    memories = [f"const {found.memory} *memory"] if found.memory else []
    given = [array.name for array in found.arrays]
    if found.memory:
        given[0] = "memory"
    head = wrapped(f"static void run({', '.join([*streams, *memories])}) {{", "")
    body = [line for array in found.arrays for line in array.inside()]
    return [*head, *body, *wrapped(f"{found.kernel}<shape>({', '.join([*names, *given])});"), "}"]


def _numbered(name: str, wires: tuple[Wire, ...]) -> list[str]:
    return [name] if len(wires) == 1 else [f"{name}_{index}" for index in range(1, len(wires) + 1)]


def _call(process: Process, found: Code) -> list[str]:
    """A call: the streams that are read, those that are written."""
    streams = [wire.stream.name for wire in (*process.reads, *process.writes)]
    memories = [f"{process.name}_memory"] if found.memory is not None else []
    return wrapped(f"{process.name}::run({', '.join([*streams, *memories])});")
