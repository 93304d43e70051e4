"""Models lowered and run on every machine, and what has to be the same there."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.neon import toolchain
from tersor.backends.neon.artifact import NeonArtifact
from tersor.backends.neon.backend import Neon
from tersor.backends.neon.kernel_names import write_kernels
from tersor.backends.neon.machine import Machine
from tersor.ir.program import Program
from tersor.passes.manager import PassManager
from tersor.passes.quantization.placement import Coverage

DRIVER = Path(__file__).parent / "trace_model.c"
SANITIZED = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Werror")
CPUS = {"neon": "cortex-a53", "dotprod": "cortex-a76", "i8mm": "max"}
"""The processor on which each instruction set is tried: one that has no better one."""


@dataclass(frozen=True)
class Machines:
    """The portable C under sanitizers, and the emulated processors, with their kernels built once."""

    portable: Machine
    emulated: Machine

    def every(self, isas: Sequence[str]) -> list[tuple[str, Machine]]:
        """Each instruction set on each of the two kinds."""
        native = [(isa, replace(self.emulated, isa=isa, cpu=CPUS[isa])) for isa in isas]
        return [*((isa, replace(self.portable, isa=isa)) for isa in isas), *native]


def build_kernels(folder: Path, compiler: toolchain.Compiler, flags: Sequence[str]) -> Path:
    """An archive of all kernels."""
    sources = [path for path in write_kernels(folder) if path.suffix == ".c"]
    objects = [compiler.compile(source, folder / f"{source.stem}.o", flags) for source in sources]
    archive = folder / "libkernels.a"
    subprocess.run(["ar", "rcs", str(archive), *map(str, objects)], check=True)
    return archive


def quantized(
    model: nn.Module | Program, example: tuple[Tensor, ...], scheme: Any = ts.INT8, **options: Any
) -> Program:
    """A model of the integer stage, with every operator on a grid."""
    program = model if isinstance(model, Program) else ts.trace(model.eval(), example, **options)
    batches = [tuple(1.5 * torch.randn_like(tensor) + 0.3 for tensor in example) for _ in range(2)]
    quantize = ts.Quantize(scheme, calibration=batches, coverage=Coverage.EVERYTHING, correct_bias=False)
    return PassManager([quantize, *Neon().passes()], progress=False).run(program).program


def lower(program: Program, out: Path, isas: Sequence[str] = tuple(CPUS)) -> NeonArtifact:
    artifact = ts.lower(program, Neon(isas=tuple(isas)), out=out)
    assert isinstance(artifact, NeonArtifact)
    return artifact


def assert_same_bits(
    program: Program, artifact: NeonArtifact, machines: Machines, isas: Sequence[str], sample: Any
) -> None:
    """The program's outputs on every machine, whole and in threads; the same bytes in the arena after each step."""
    with torch.no_grad():
        outputs = program.run(list(sample))
    wanted = b"".join(tensor.contiguous().numpy().tobytes() for tensor in outputs)
    arenas: dict[str, bytes] = {}
    for isa, machine in machines.every(isas):
        found = trace(artifact.on(machine), sample)
        whole, threads, arena = found[: len(wanted)], found[len(wanted) : 2 * len(wanted)], found[2 * len(wanted) :]
        assert whole == wanted, f"{isa} on {machine}"
        assert threads == wanted, f"{isa} on {machine}, in threads"
        assert arena == arenas.setdefault(isa, arena), f"{isa} on {machine}, the arena"


def trace(artifact: NeonArtifact, sample: Sequence[Tensor]) -> bytes:
    """What trace_model.c writes about a sample."""
    folder, machine = artifact.build(), artifact.machine
    program = folder / "trace_model"
    if not program.exists():
        static = ["-static"] if machine.emulated else []
        words = [*machine.compiler(), *machine.flags, "-O1", "-pthread", f"-I{folder}", str(DRIVER)]
        libraries = [str(folder / "libmodel.a"), *([str(machine.kernels)] if machine.kernels else [])]
        result = subprocess.run(
            [*words, *libraries, *static, "-o", str(program)], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    (frame,) = artifact.frames(sample)
    return machine.execute(program, frame)
