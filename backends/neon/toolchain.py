"""Compilers and emulators: native on ARM, cross-compiled and emulated elsewhere."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tersor.ir.errors import LoweringError, MissingDependencyError

KERNELS = Path(__file__).parent / "kernels"
"""The C sources and headers of the kernels."""

FLAGS = ("-O2", "-Wall", "-Wextra", "-std=c11", "-ffp-contract=off")
"""Of every file. A contracted multiply-add rounds once where the definition rounds twice."""

EXTENSIONS = {"_dotprod": "dotprod", "_i8mm": "i8mm"}
"""By the end of a file's name. Clang needs it, GCC takes it from the source; the caller dispatches at run time."""

COMPILER_PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
EMULATOR_PACKAGE = "qemu-user"
_EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def is_native() -> bool:
    """Whether this machine runs AArch64 code itself."""
    return platform.machine().lower() in ("aarch64", "arm64")


@dataclass(frozen=True)
class Compiler:
    """A C compiler for AArch64, as the words of its command; `portable`: for any machine, without ARM's flags."""

    command: tuple[str, ...]
    portable: bool = False

    def build(self, sources: Sequence[Path], program: Path, flags: Sequence[str] = ()) -> Path:
        """Compile and link statically, which an emulator runs without a copy of the target's libraries.

        Raises:
            LoweringError: where the compiler fails, with what it said.
        """
        objects = [self.compile(source, program.parent / f"{source.stem}.o", flags) for source in sources]
        static = [] if is_native() and platform.system() == "Darwin" else ["-static"]
        self._run([*static, *map(str, objects), "-o", str(program)])
        return program

    def compile(self, source: Path, output: Path, flags: Sequence[str] = ()) -> Path:
        """One file to one object."""
        base = "-mcpu=generic" if "ziglang" in self.command else "-march=armv8.2-a"
        march = [f"{base}+{name}" for end, name in EXTENSIONS.items() if source.stem.endswith(end)]
        self._run(
            [*FLAGS, *([] if self.portable else march), *flags, f"-I{KERNELS}", "-c", str(source), "-o", str(output)]
        )
        return output

    def _run(self, words: Sequence[str]) -> None:
        result = subprocess.run([*self.command, *words], capture_output=True, text=True, check=False)
        if result.returncode:
            raise LoweringError(f"{self.command[0]} failed", found=result.stderr.strip())


ZIG = Compiler((sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"))
"""The compiler of the PyPI package ziglang, which brings the target's C library."""


def missing_tools() -> str | None:
    """What has to be installed before artifacts can be built and run here; None where nothing is."""
    wanted = []
    try:
        find_compiler()
    except MissingDependencyError:
        wanted.append(COMPILER_PACKAGES)
    if not is_native() and not any(map(shutil.which, _EMULATORS)):
        wanted.append(EMULATOR_PACKAGE)
    return f"apt-get install {' '.join(wanted)}" if wanted else None


def find_compiler() -> Compiler:
    """The compiler for AArch64 on this machine.

    Raises:
        MissingDependencyError: where there is none.
    """
    for name in ("cc", "gcc", "clang") if is_native() else ("aarch64-linux-gnu-gcc",):
        if shutil.which(name):
            return Compiler((name,))
    if find_spec("ziglang") is not None:
        return ZIG
    raise MissingDependencyError(
        "no C compiler for AArch64",
        expected="aarch64-linux-gnu-gcc, zig cc, or a C compiler on an ARM machine",
        hint=f"pip install 'tersor[neon]', or apt-get install {COMPILER_PACKAGES}",
    )


def find_emulator() -> str:
    """The path of qemu-aarch64.

    Raises:
        MissingDependencyError: where there is none.
    """
    for name in _EMULATORS:
        if found := shutil.which(name):
            return found
    raise MissingDependencyError(
        "no emulator for AArch64", expected="qemu-aarch64", hint=f"apt-get install {EMULATOR_PACKAGE}"
    )
