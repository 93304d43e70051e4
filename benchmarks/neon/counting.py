"""Runs kernels under qemu-aarch64 with the plugin that counts their instructions, and checks what they wrote."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tersor.backends.neon.artifact import NeonArtifact
from tersor.backends.neon.toolchain import KERNELS, find_compiler, find_emulator

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Call:
    """One call, as run_cases.c reads it: a kernel's place in its table, integers, buffers; the last is written."""

    kernel: int
    integers: tuple[int, ...]
    buffers: tuple[NDArray[np.generic], ...]
    expected: NDArray[np.int8]

    def encode(self) -> bytes:
        head = [self.kernel, len(self.integers), *self.integers, len(self.buffers)]
        parts = [np.array(head, "<i4").tobytes()]
        for buffer in self.buffers:
            parts += [np.array(buffer.nbytes, "<i4").tobytes(), np.ascontiguousarray(buffer).tobytes()]
        return b"".join(parts)


def count(calls: Sequence[Call]) -> list[int]:
    """Instructions executed inside each call.

    Raises:
        ArithmeticError: where a kernel's output is not, bit for bit, what was expected.
        MissingDependencyError: without a compiler for AArch64 or qemu-aarch64.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        program = find_compiler().build([*sorted(KERNELS.glob("*.c")), HERE / "run_cases.c"], folder / "run_cases")
        report = folder / "counts"
        plugin = ["-plugin", f"{_plugin(folder)},out={report}"]
        command = [find_emulator(), "-cpu", "max", *plugin, str(program)]
        given = b"".join(call.encode() for call in calls)
        result = subprocess.run(command, input=given, capture_output=True, check=True)
        _compare(calls, result.stdout)
        return [int(line.split()[0]) for line in report.read_text().splitlines()]


@dataclass(frozen=True)
class ModelCounts:
    """Instructions of a whole run, and of each step in order without what calling it by itself takes."""

    total: int
    steps: tuple[float, ...]


def count_model(artifact: NeonArtifact, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> ModelCounts:
    """Instructions that one sample takes, on the machine of the artifact.

    Raises:
        ArithmeticError: where an output is not, bit for bit, what was expected.
        MissingDependencyError: without a compiler for AArch64 or qemu-aarch64.
    """
    build, machine = artifact.build(), artifact.machine
    with TemporaryDirectory() as name:
        folder = Path(name)
        program, report = folder / "count_model", folder / "counts"
        words = [*machine.compiler(), "-O2", "-std=gnu11", f"-I{build}", str(HERE / "count_model.c")]
        subprocess.run([*words, str(build / "libmodel.a"), "-static", "-o", str(program)], check=True)
        options = ["-cpu", machine.cpu, "-plugin", f"{_plugin(folder)},out={report}"]
        environment = {**os.environ, "TERSOR_ISA": machine.isa or ""}
        (frame,) = artifact.frames(inputs)
        command = [find_emulator(), *options, str(program)]
        result = subprocess.run(command, input=frame, capture_output=True, check=True, env=environment)
        wanted = b"".join(tensor.contiguous().numpy().tobytes() for tensor in expected)
        if result.stdout != wanted * 2:
            raise ArithmeticError("the model's output differs from the program's")
        total, *steps = (int(line.split()[0]) for line in report.read_text().splitlines())
        call = (sum(steps) - total) / len(steps)
        return ModelCounts(total, tuple(step - call for step in steps))


def _plugin(folder: Path) -> Path:
    library = folder / "libcount.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(["cc", *flags, str(HERE / "count_instructions.c"), "-o", str(library)], check=True)
    return library


def _compare(calls: Sequence[Call], answers: bytes) -> None:
    expected = np.concatenate([call.expected.reshape(-1) for call in calls])
    found = np.frombuffer(answers, np.int8)
    if not np.array_equal(found, expected):
        raise ArithmeticError("a kernel's output differs from the definition")
