"""A lowered design: C++ sources, simulated here with a plain C++ compiler."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tersor.ir.errors import ArchiveError, LoweringError, SignatureError
from tersor.ir.integer_operators import dequantize, quantize
from tersor.ir.requantize_forms import Ints

from ..base import Artifact
from ..batching import is_batched
from ..clock import Clock
from .graph import Port
from .toolchain import compile_program

if TYPE_CHECKING:
    from .synthesis import Comparison

INTERFACE = "interface.json"
SOURCES = "hls"


@dataclass(frozen=True)
class PortRow:
    """How an input or output tensor and its stream hang together, as `interface.json` has it."""

    name: str
    index: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    scale: tuple[float, ...]
    zero_point: int
    axis: int | None
    grid: tuple[int, int]
    base: int

    @classmethod
    def of(cls, port: Port) -> PortRow:
        """That of a port."""
        order = tuple(int(place) for place in port.order)
        return cls(
            port.stream.name, port.index, port.shape, order, port.scale, port.zero_point, port.axis,
            (port.low, port.high), port.stream.low,
        )  # fmt: skip

    def sent(self, tensor: Tensor) -> Ints:
        """A float tensor as its stream carries it, int64[count]."""
        q = quantize(tensor.detach().cpu(), torch.tensor(self.scale[0]), self.zero_point, *self.grid)
        values = np.zeros(len(self.order), np.int64)
        values[list(self.order)] = q.reshape(-1).numpy().astype(np.int64) - self.base
        return values

    def received(self, values: Ints) -> Tensor:
        """The float tensor that int64[count] of the stream stand for."""
        q = torch.from_numpy(values[list(self.order)] + self.base).reshape(self.shape).to(torch.int32)
        scale = torch.tensor(self.scale if self.axis is not None else self.scale[0], dtype=torch.float32)
        return dequantize(q, scale, self.zero_point, self.axis)


def ports_to_json(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    """`interface.json`."""
    rows = {"inputs": inputs, "outputs": outputs}
    return json.dumps({kind: [vars(PortRow.of(port)) for port in ports] for kind, ports in rows.items()})


class HlsArtifact(Artifact):
    """A Vitis HLS project and what it was made from. `run` compiles the C simulation with g++ once, then runs it."""

    def run_flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Simulate frame by frame.

        Raises SignatureError for values that no grid has, MissingDependencyError without a C++ compiler, LoweringError.
        """
        frames = inputs[0].shape[0] if self._batched else 1
        data = self._execute(self._frames(inputs, frames))
        return self._outputs(data, frames)

    @property
    def clock(self) -> Clock:
        """A simulation by the host's processor, whose time is not the circuit's."""
        return Clock.SIMULATED

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What every stream carried, by its name, int64[frames, values], in the order in which it travels."""
        frames = inputs[0].shape[0] if self._batched else 1
        with tempfile.TemporaryDirectory(prefix="tersor-trace-") as folder:
            self._execute(self._frames(inputs, frames), folder)
            for file in sorted(Path(folder).glob("*.bin")):
                yield file.stem, torch.from_numpy(np.fromfile(file, np.int64).reshape(frames, -1))

    def build(self) -> Path:
        """Compile the simulation where that has not been done; the program's path."""
        folder = self.path / SOURCES
        program = folder / "simulate"
        sources = [folder / "simulate.cpp", folder / f"{self._name}.cpp"]
        newest = max(file.stat().st_mtime for file in (*sources, *folder.glob("layers/*.h"), *folder.glob("kernels/*")))
        if program.exists() and program.stat().st_mtime >= newest:
            return program
        return compile_program(sources, program, [folder, folder / "simulation"])

    def synthesize(self) -> Comparison:
        """Run Vitis HLS: simulate with golden vectors, synthesize, export IP; its figures beside the estimates.

        They are written to synthesis.json as well. Raises MissingDependencyError, LoweringError.
        """
        from .synthesis import synthesize

        return synthesize(self.path, self.path / SOURCES)

    @property
    def _name(self) -> str:
        return next(
            note.removeprefix("top function ") for note in self.report.notes if note.startswith("top function ")
        )

    @property
    def _batched(self) -> bool:
        return is_batched(self.signature)

    def _interface(self) -> dict[str, list[PortRow]]:
        try:
            document: dict[str, Any] = json.loads((self.path / INTERFACE).read_text())
            return {
                kind: [PortRow(**{key: _tuple(value) for key, value in row.items()}) for row in document[kind]]
                for kind in ("inputs", "outputs")
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArchiveError(
                f"{self.path / INTERFACE} is damaged: {error}", hint="lower the program again"
            ) from error

    def _frames(self, inputs: Sequence[Tensor], frames: int) -> bytes:
        parts, ports = [np.array([frames], np.int64)], self._interface()["inputs"]
        for spec, tensor in zip(self.signature.inputs, inputs, strict=True):
            _refuse_what_no_grid_has(spec.name, tensor)
        for frame in range(frames):
            for port in ports:
                tensor = inputs[port.index]
                parts.append(port.sent(tensor[frame : frame + 1] if self._batched else tensor))
        return np.concatenate(parts).tobytes()

    def _execute(self, data: bytes, trace: str | None = None) -> Ints:
        command = [str(self.build()), *([trace] if trace else [])]
        result = subprocess.run(command, input=data, capture_output=True, check=False)
        if result.returncode:
            found = result.stderr.decode(errors="replace").strip()[-2000:]
            raise LoweringError("the C simulation failed", found=found or f"exit status {result.returncode}")
        return np.frombuffer(result.stdout, np.int64)

    def _outputs(self, data: Ints, frames: int) -> list[Tensor]:
        ports = self._interface()["outputs"]
        counts = [len(port.order) for port in ports]
        rows = data.reshape(frames, sum(counts))
        found: dict[int, Tensor] = {}
        for port, start in zip(ports, np.cumsum([0, *counts[:-1]]), strict=True):
            parts = [port.received(row[start : start + len(port.order)]) for row in rows]
            found[port.index] = torch.cat(parts) if self._batched else parts[0]
        return [found[index] for index in sorted(found)]


def _refuse_what_no_grid_has(name: str, tensor: Tensor) -> None:
    """Raises SignatureError where a value is not finite: the design has no float that it could be."""
    for index in (~torch.isfinite(tensor)).nonzero()[:1].tolist():
        raise SignatureError(
            f"input {name!r} has a value that is on no integer grid",
            expected="finite float32 values",
            found=f"{tensor[tuple(index)].item()} at {index}",
            hint=f"replace such values before the run, as torch.nan_to_num({name}) does",
        )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
