"""The C++ compiler that simulates a design, and Vitis where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tersor.ir.errors import LoweringError, MissingDependencyError

KERNELS = Path(__file__).parent / "kernels"
"""Templates of every kernel family; they are copied beside the generated sources."""
SIMULATION = Path(__file__).parent / "simulation"
"""What takes the place of the vendor's headers in a simulation."""

_VITIS: dict[str, tuple[str, ...]] = {
    "vitis_hls": ("-f",),
    "vitis-run": ("--mode", "hls", "--tcl"),
}
"""Programs that run the script, the older one first, and what stands before its name."""
_COMPILERS = ("g++", "c++", "clang++")
_FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas")


def find_compiler() -> str:
    """The path of a C++ compiler.

    Raises:
        MissingDependencyError: where there is none.
    """
    for name in _COMPILERS:
        if found := shutil.which(name):
            return found
    raise MissingDependencyError(
        "no C++ compiler to simulate with", expected=" or ".join(_COMPILERS), hint="apt-get install g++"
    )


def has_compiler() -> bool:
    """Whether there is one."""
    return any(shutil.which(name) for name in _COMPILERS)


def compile_program(sources: Sequence[Path], program: Path, include: Sequence[Path]) -> Path:
    """Compile and link into `program`, which gets its name when it is whole.

    Raises:
        MissingDependencyError: without a compiler.
        LoweringError: where the compiler fails, with what it said.
    """
    draft = program.with_name(f".{program.name}")
    words = [find_compiler(), *_FLAGS, *(f"-I{folder}" for folder in include), *map(str, sources), "-o", str(draft)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LoweringError("the C++ sources do not compile here", found=result.stderr.strip()[-3000:])
    return draft.replace(program)


def find_vitis() -> tuple[str, ...]:
    """The command that runs a Tcl script in Vitis HLS, without the script.

    Raises:
        MissingDependencyError: where it is not installed.
    """
    for name, options in _VITIS.items():
        if found := shutil.which(name):
            return (found, *options)
    raise MissingDependencyError(
        "no Vitis HLS to synthesize with",
        expected=" or ".join(_VITIS),
        hint="install Vitis and source its settings64.sh; what is estimated without it stands in report.json",
    )
