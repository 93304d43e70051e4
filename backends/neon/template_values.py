"""What the templates of a library are filled with: names, sizes, and the words of its README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .blob import Blob
from .memory import Arena
from .plan import Plan
from .source import Context, indices
from .steps import Gather


@dataclass(frozen=True)
class Variant:
    """The model for one instruction set, whose kernels take `block` channels together."""

    isa: str
    block: int
    plan: Plan
    arena: Arena

    def context(self, blob: Blob) -> Context:
        """What its steps are written with."""
        return Context(self.isa, self.block, blob, self.arena)


def template_values(
    program: Program, name: str, variants: Sequence[Variant], blob: Blob, constants: Mapping[str, int]
) -> dict[str, str]:
    """The text for each `@key@` of a template. constants: bytes by instruction set. All sources are written by now."""
    tensors, isas = _tensors(program), [variant.isa for variant in variants]
    checks = _index_checks(name, variants[0], blob)
    layers = len({step.node for step in variants[0].plan.steps})
    summary = f"{_words(program.name)}, {layers} layers on int8"
    return {
        "name": name,
        "NAME": name.upper(),
        "summary": summary,
        "summary_line": f"{summary}, for {_listed(isas)}.",
        "version": version("tersor"),
        "tensors": "\n".join(f" * {tensor.line}" for tensor in tensors),
        "tensor_table": _table(tensors),
        "example": _example(name, tensors),
        "sources": " ".join([f"{name}.c", *(f"{name}_{isa}.c" for isa in isas)]),
        "variant_rows": "\n".join(f"| `{name}_{isa}.c` | the layers for {isa}, with its memory plan |" for isa in isas),
        "size_rows": "\n".join(
            f"| {v.isa} | {len(v.plan.steps)} | {v.arena.size} | {constants[v.isa]} |" for v in variants
        ),
        "arena_size": str(max(variant.arena.size for variant in variants)),
        "weights_size": str(blob.size),
        "checksum": f"0x{blob.checksum:08X}, 0",
        "externs": f"extern const tersor_variant {', '.join(f'{name}_{isa}' for isa in isas)};",
        "variants": ", ".join(f"&{name}_{isa}" for isa in isas),
        "index_checks": checks,
        **_input_values([tensor for tensor in tensors if not tensor.output]),
        **_output_values([tensor for tensor in tensors if tensor.output]),
    }


@dataclass(frozen=True)
class _Tensor:
    """An input or an output of the library."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    index: int
    output: bool

    @property
    def count(self) -> int:
        """How many values it has."""
        return int(torch.Size(self.shape).numel())

    @property
    def type(self) -> str:
        """The type of its values in C."""
        return {torch.float32: "float", torch.int32: "int32_t", torch.int64: "int64_t"}[self.dtype]

    @property
    def line(self) -> str:
        """What the header says of it."""
        sizes = "".join(f"[{size}]" for size in self.shape)
        return f"{'output' if self.output else 'input'} {self.index}: {self.type} {self.name}{sizes}"


def _tensors(program: Program) -> list[_Tensor]:
    found = [
        _Tensor(_words(spec.name), spec.dtype, _sizes(node), index, output=False)
        for index, (spec, node) in enumerate(zip(program.signature.inputs, program.placeholders, strict=True))
    ]
    for index, (name, node) in enumerate(zip(program.signature.output_names, program.outputs, strict=True)):
        found.append(_Tensor(_words(name), node.meta[KEY].dtype, _sizes(node), index, output=True))
    return found


def _sizes(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta[KEY].shape)  # support.py: none is dynamic


def _words(text: str) -> str:
    """A name that a user gave, in a comment of C or in Markdown: of one line, and ending neither."""
    return "".join(letter if letter.isalnum() or letter in "_.-[]" else "_" for letter in text)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _input_values(tensors: Sequence[_Tensor]) -> dict[str, str]:
    floats = [tensor.dtype is torch.float32 for tensor in tensors]
    return {
        "inputs": str(len(tensors)),
        "input_counts": _numbers(tensor.count for tensor in tensors),
        "input_bytes": ", ".join(f"sizeof({tensor.type})" for tensor in tensors),
        "input_is_float": _numbers(map(int, floats)),
        "input_type": "float" if all(floats) else "void",
    }


def _output_values(tensors: Sequence[_Tensor]) -> dict[str, str]:
    floats = all(tensor.dtype is torch.float32 for tensor in tensors)
    return {
        "outputs": str(len(tensors)),
        "output_counts": _numbers(tensor.count for tensor in tensors),
        "output_bytes": ", ".join(f"sizeof({tensor.type})" for tensor in tensors),
        "output_type": "float" if floats else "void",
    }


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _index_checks(name: str, variant: Variant, blob: Blob) -> str:
    """C that refuses numbers for which a table has no row."""
    lines = []
    for step in variant.plan.steps:
        if isinstance(step, Gather):
            numbers = indices(variant.context(blob), step).replace("(weights + ", "(weights_of(call) + ")
            given = f"&(tersor_indices){numbers}, call->inputs[{step.index}], {len(step.table)}"
            lines.append(f"    if (!tersor_indices_within({given}))\n        return {name.upper()}_WRONG_INDEX;\n")
    return "".join(dict.fromkeys(lines))


def _table(tensors: Sequence[_Tensor]) -> str:
    rows = [
        f"| {'output' if t.output else 'input'} {t.index} | `{t.name}` | `{t.type}` | {' x '.join(map(str, t.shape))} |"
        for t in tensors
    ]
    return "\n".join(["| tensor | name | type | shape |", "|---|---|---|---|", *rows])


def _example(name: str, tensors: Sequence[_Tensor]) -> str:
    """A call in C, with the tensors of this model."""
    lines = [f'#include "{name}.h"', "", f"static _Alignas(64) char arena[{name.upper()}_ARENA_SIZE];"]
    for tensor in tensors:
        lines.append(f"static {tensor.type} {_variable(tensor)}[{tensor.count}];")
    lines += ["", f"{name}_call call = {{"]
    for kind, output in (("input", False), ("output", True)):
        given = [tensor for tensor in tensors if tensor.output is output]
        names, counts = ", ".join(map(_variable, given)), _numbers(tensor.count for tensor in given)
        lines.append(f"    .{kind}s = {{{names}}}, .{kind}_counts = {{{counts}}},")
    lines += [
        "    .arena = arena, .arena_size = sizeof arena,",
        "};",
        f"const int wrong = {name}_run(&call);",
    ]
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _variable(tensor: _Tensor) -> str:
    return f"{'output' if tensor.output else 'input'}_{tensor.index}"
