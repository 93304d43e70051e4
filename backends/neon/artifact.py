"""A lowered model: C sources, built and run here to see what they give."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx

from tersor.ir.errors import LoweringError, MissingDependencyError
from tersor.ir.shapes import KEY
from tersor.ir.signature import Range, Signature, TensorSpec

from ..base import Artifact
from .toolchain import find_compiler, find_emulator, is_native

_BATCH = "batch"


def batched(signature: Signature, outputs: Sequence[fx.Node]) -> Signature:
    """The signature with a dynamic batch, where every input and output starts with 1: samples are run one by one."""
    shapes = [*(spec.shape for spec in signature.inputs), *(tuple(node.meta[KEY].shape) for node in outputs)]
    if not all(shape and shape[0] == 1 for shape in shapes):
        return signature
    inputs = tuple(TensorSpec(spec.name, spec.dtype, (_BATCH, *spec.shape[1:])) for spec in signature.inputs)
    return replace(signature, inputs=inputs, dims={_BATCH: Range()})


class NeonArtifact(Artifact):
    """C sources in a folder. `run` builds the example program: natively on ARM, else for ARM, run by qemu-aarch64.

    portable: build the portable C of the same semantics for this machine instead. isa: an instruction set, among those
    it was lowered for, instead of the best. cpu: which processor qemu emulates. flags: for the compiler, as sanitizers.
    """

    portable: bool = False
    isa: str | None = None
    cpu: str = "max"
    flags: tuple[str, ...] = ()

    def run_flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run sample by sample. Raises MissingDependencyError, LoweringError."""
        program = self.build()
        shapes = [spec.shape for spec in self.signature.inputs]
        dynamic = bool(shapes) and shapes[0][:1] == (_BATCH,)
        samples = inputs[0].shape[0] if dynamic else 1
        frames = b"".join(
            b"".join((tensor[i] if dynamic else tensor).contiguous().numpy().tobytes() for tensor in inputs)
            for i in range(samples)
        )
        return self._outputs(self._execute(program, frames), samples, dynamic)

    def build(self) -> Path:
        """Compile the library and its example program, where that has not been done; the program's path."""
        if self.portable:
            cc = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
            if cc is None:
                raise MissingDependencyError("no C compiler", expected="cc", hint="apt-get install gcc libc6-dev")
            command, kind = cc, "portable"
        else:
            command, kind = " ".join(find_compiler().command), "arm"
        folder = self.path / f"build-{kind}"
        self._sources_into(folder)
        flags = ["-O2", *self.flags, *(["-DTERSOR_PORTABLE"] if self.portable else [])]
        static = [] if self.portable or is_native() else ["-static"]
        words = ["make", "-s", "-C", str(folder), f"CC={command}", f"CFLAGS={' '.join(flags)}", "main", "bench"]
        result = subprocess.run([*words, f"LDFLAGS={' '.join(static)}"], capture_output=True, text=True, check=False)
        if result.returncode:
            raise LoweringError("the C sources do not compile here", found=result.stderr.strip()[-2000:])
        return folder / "main"

    def _sources_into(self, folder: Path) -> None:
        """A folder to build in, so that objects for several machines do not mix. Sources are copied once."""
        folder.mkdir(exist_ok=True)
        for source in [*self.path.glob("*.[chS]"), *self.path.glob("kernels/*.[ch]"), self.path / "Makefile"]:
            target = folder / source.relative_to(self.path)
            target.parent.mkdir(exist_ok=True)
            if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
                shutil.copy2(source, target)
        weights = folder / "weights.bin"
        if not weights.exists():
            weights.symlink_to(self.path.resolve() / "weights.bin")

    def _execute(self, program: Path, frames: bytes) -> bytes:
        emulated = not self.portable and not is_native()
        command = [find_emulator(), "-cpu", self.cpu, str(program)] if emulated else [str(program)]
        environment = {**os.environ, "TERSOR_ISA": self.isa or ""}
        result = subprocess.run(command, input=frames, capture_output=True, check=False, env=environment)
        if result.returncode:
            found = result.stderr.decode(errors="replace").strip()[-2000:]
            raise LoweringError(f"the model failed on {platform.machine()}", found=found or result.returncode)
        return result.stdout

    def _outputs(self, data: bytes, samples: int, dynamic: bool) -> list[Tensor]:
        shapes = self.output_shapes()
        values = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(samples, -1)
        counts = [int(torch.Size(shape).numel()) for shape in shapes]
        parts = values.split(counts, dim=1)
        return [
            part.reshape(samples, *shape[1:]) if dynamic else part.reshape(shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def output_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each output, for one sample."""
        return [tuple(map(int, note.removeprefix("output ").split("x"))) for note in self._notes("output ")]

    def _notes(self, prefix: str) -> list[str]:
        return [note for note in self.report.notes if note.startswith(prefix)]
