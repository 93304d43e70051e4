"""Numeric comparison of any two of: a program, an ONNX file, an artifact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.table import Table
from torch import Tensor, fx

from tersor.backends.base import Artifact
from tersor.ir.errors import SignatureError
from tersor.ir.example import example_of, synthesize
from tersor.ir.program import Program
from tersor.ir.signature import TensorSpec
from tersor.passes.compare import Difference, difference, node_values, shape_mismatch
from tersor.passes.report import as_text, decibels

from .sources import load_program, open_artifact, split


class Runnable(Protocol):
    """Anything that can be compared: it has a name and input specs, runs on flat inputs and may show its layers."""

    name: str
    inputs: tuple[TensorSpec, ...]

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Flat outputs."""
        ...

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each intermediate value with its name."""
        ...


class RunnableProgram:
    """A program, run by torch."""

    def __init__(self, program: Program, name: str) -> None:
        self.name, self.program = name, program
        self.inputs = program.signature.inputs

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run the graph."""
        self.program.signature.check(inputs)
        with torch.no_grad():
            return self.program.run([tensor.to(self.program.device) for tensor in inputs])

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Run node by node."""
        values: list[tuple[str, Tensor]] = []

        def visit(node: fx.Node, value: Any) -> None:
            if node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
                values.append((node.name, value))

        node_values(self.program, inputs, visit)
        yield from values


class RunnableArtifact:
    """An artifact, run by its target's runtime."""

    def __init__(self, artifact: Artifact, name: str) -> None:
        self.name, self.artifact = name, artifact
        self.inputs = artifact.signature.inputs

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run on the target."""
        self.artifact.signature.check(inputs)
        return self.artifact.run_flat(inputs)

    def latency(self, inputs: Sequence[Tensor]) -> float:
        """Seconds of one run, by the device's clock where it has one."""
        return self.artifact.latency(inputs)

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What the artifact can show of its inside."""
        yield from self.artifact.layers(inputs)


def open_runnable(where: str) -> Runnable:
    """What a path or `module:function` names. Raises ArchiveError, RecipeError or TraceError."""
    path = Path(where)
    if path.is_dir():
        return RunnableArtifact(open_artifact(path), where)
    if path.suffix == ".onnx":
        from tersor.backends.onnxruntime.model_file import OnnxFile

        return OnnxFile(path)
    return RunnableProgram(load_program(where), where)


@dataclass(frozen=True)
class Comparison:
    """Two runnables on the same inputs: each output's difference, and that of each layer whose name they share."""

    left: str
    right: str
    outputs: tuple[tuple[str, Difference], ...]
    layers: tuple[tuple[str, Difference], ...] = ()

    @property
    def worst(self) -> Difference:
        """The output that is furthest off."""
        return max((found for _, found in self.outputs), key=lambda d: (d.new_nonfinite, d.relative))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = {kind: [{"name": n, **_json(d)} for n, d in getattr(self, kind)] for kind in ("outputs", "layers")}
        return {"left": self.left, "right": self.right, **rows}

    def __rich__(self) -> Table:
        table = Table(title=f"{self.left} against {self.right}", header_style="bold")
        for heading in ("value", "max |difference|", "relative", "SQNR", "cosine"):
            table.add_column(heading, justify="left" if heading == "value" else "right")
        for name, found in (*self.layers, *self.outputs):
            table.add_row(
                name, f"{found.max_abs:.3g}", f"{found.relative:.2e}", decibels(found.sqnr), f"{found.cosine:.6f}"
            )
        return table

    def __str__(self) -> str:
        return as_text(self)


def _json(found: Difference) -> dict[str, Any]:
    import math

    sqnr = found.sqnr if math.isfinite(found.sqnr) else repr(found.sqnr)
    return {"max_abs": found.max_abs, "relative": found.relative, "sqnr": sqnr, "cosine": found.cosine,
            "new_nonfinite": found.new_nonfinite}  # fmt: skip


def compare(left: Runnable, right: Runnable, inputs: Sequence[Tensor], layers: bool = False) -> Comparison:
    """Run both on the same flat inputs. Raises SignatureError where they do not take or give the same tensors."""
    reference, candidate = tuple(left.run(inputs)), tuple(right.run(inputs))
    names = [f"output {i}" for i in range(len(reference))]
    mismatch = shape_mismatch(names, reference, candidate)
    if mismatch is not None:
        raise SignatureError(f"{left.name} and {right.name} give different tensors", found=mismatch)
    outputs = [(n, difference([a], [b])) for n, a, b in zip(names, reference, candidate, strict=True)]
    return Comparison(left.name, right.name, tuple(outputs), _shared(left, right, inputs) if layers else ())


def _shared(left: Runnable, right: Runnable, inputs: Sequence[Tensor]) -> tuple[tuple[str, Difference], ...]:
    reference = dict(left.layers(inputs))
    rows = []
    for name, value in right.layers(inputs):
        other = reference.get(name)
        if other is not None and other.shape == value.shape:
            rows.append((name, difference([other], [value])))
    return tuple(rows)


def inputs_for(left: Runnable, right: Runnable, batch: Any = None, seed: int = 0) -> Sequence[Tensor]:
    """Flat inputs that both take: a batch as the model is called with, or random ones.

    Raises SignatureError where the two take different inputs.
    """
    a, b = left.inputs, right.inputs
    if len(a) != len(b) or any(x.dtype != y.dtype or len(x.shape) != len(y.shape) for x, y in zip(a, b, strict=True)):
        found = f"({', '.join(map(str, a))}) and ({', '.join(map(str, b))})"
        raise SignatureError(f"{left.name} and {right.name} take different inputs", found=found)
    programs = [side for side in (left, right) if isinstance(side, RunnableProgram)]
    if batch is not None:
        args, kwargs = split(batch)
        for side in (left, right):
            if isinstance(side, RunnableProgram | RunnableArtifact):
                signature = side.program.signature if isinstance(side, RunnableProgram) else side.artifact.signature
                return signature.flatten(args, kwargs)
        return [*args, *(kwargs[spec.name] for spec in a if spec.name in kwargs)]
    if not programs:
        return _random(a, b, seed)
    program = programs[0].program
    if seed == 0 and program.example is not None:
        return example_of(program)
    return synthesize(program, seed, _sizes(a, b))


def _sizes(left: Sequence[TensorSpec], right: Sequence[TensorSpec]) -> dict[str, int]:
    """The sizes that one side fixes and the other leaves open."""
    pairs = [pair for x, y in zip(left, right, strict=True) for pair in zip(x.shape, y.shape, strict=True)]
    swapped = [(y, x) for x, y in pairs]
    return {name: size for name, size in pairs + swapped if isinstance(name, str) and isinstance(size, int)}


def _random(left: Sequence[TensorSpec], right: Sequence[TensorSpec], seed: int) -> Sequence[Tensor]:
    """Random inputs where neither side is a program that could tell what its integers mean: those are 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for spec, other in zip(left, right, strict=True):
        pairs = zip(spec.shape, other.shape, strict=True)
        shape = [x if isinstance(x, int) else y if isinstance(y, int) else 2 for x, y in pairs]
        if spec.dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(spec.dtype))
        else:
            tensors.append(torch.randint(0, 2, shape, generator=generator).to(spec.dtype))
    return tensors
