"""Where an artifact is built and run: this machine, or the one that an emulator gives."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tersor.ir.errors import LoweringError, MissingDependencyError

from ..manifest import NAME
from .toolchain import find_compiler, find_emulator, is_native

BUILDS = "build"
"""The folder of an artifact that holds what was built from it, one folder inside for each way to build."""


@dataclass(frozen=True)
class Machine:
    """How a lowered model is built and run.

    portable: the portable C of the same semantics, on this machine. isa: an instruction set among those it was lowered
    for; None is the best that the processor has. cpu: which processor qemu emulates.
    flags, command: for the compiler, and the words that it is called by, where it is not to be looked for.
    kernels: an archive of the kernels, built with the same compiler and flags, which saves building them once more.
    """

    portable: bool = False
    isa: str | None = None
    cpu: str = "max"
    flags: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    kernels: Path | None = None

    @property
    def emulated(self) -> bool:
        """Whether the program runs in an emulator."""
        return not self.portable and not is_native()

    def compiler(self) -> tuple[str, ...]:
        """The words of the compiler's command. Raises MissingDependencyError."""
        if self.command:
            return self.command
        if not self.portable:
            return find_compiler().command
        for name in ("cc", "gcc", "clang"):
            if shutil.which(name):
                return (name,)
        raise MissingDependencyError("no C compiler", expected="cc", hint="apt-get install gcc libc6-dev")

    def build(self, artifact: Path) -> Path:
        """The folder with the library and its programs, built where that was not done yet.

        It takes its name when it is whole. Raises MissingDependencyError, LoweringError.
        """
        command = " ".join(self.compiler())
        flags = " ".join(("-O2", *self.flags, *(("-DTERSOR_PORTABLE",) if self.portable else ())))
        content = "\0".join((command, flags)).encode() + (artifact / NAME).read_bytes()
        folder = artifact / BUILDS / hashlib.sha256(content).hexdigest()[:16]
        if not folder.is_dir():
            (artifact / BUILDS).mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=artifact / BUILDS, prefix=".") as name:
                draft = Path(name) / "draft"
                _copy_sources(artifact, draft)
                static = "-static" if self.emulated else ""
                _make(draft, f"CC={command}", f"CFLAGS={flags}", f"LDFLAGS={static}", f"KERNELS={self.kernels or ''}")
                if not folder.is_dir():
                    draft.replace(folder)
        return folder

    def execute(self, program: Path, data: bytes, arguments: Sequence[str] = ()) -> bytes:
        """What the program writes, given `data`. Raises MissingDependencyError, LoweringError."""
        emulator = [find_emulator(), "-cpu", self.cpu] if self.emulated else []
        environment = {**os.environ, "TERSOR_ISA": self.isa or ""}
        command = [*emulator, str(program), *arguments]
        result = subprocess.run(command, input=data, capture_output=True, check=False, env=environment)
        if result.returncode:
            found = result.stderr.decode(errors="replace").strip()[-2000:]
            where = f"emulated {self.cpu}" if self.emulated else "this machine"
            raise LoweringError(f"{program.name} failed on {where}", found=found or f"exit code {result.returncode}")
        return result.stdout


def _copy_sources(artifact: Path, draft: Path) -> None:
    shutil.copytree(artifact / "kernels", draft / "kernels")
    for source in [*artifact.glob("*.[chS]"), artifact / "Makefile", artifact / "weights.bin"]:
        shutil.copy2(source, draft / source.name)


def _make(folder: Path, *variables: str) -> None:
    if shutil.which("make") is None:
        raise MissingDependencyError("no make", expected="make", hint="apt-get install make")
    command = ["make", "-s", f"-j{os.cpu_count() or 1}", "-C", str(folder), *variables, "main", "bench"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LoweringError("the C sources do not compile", found=result.stderr.strip()[-2000:])
