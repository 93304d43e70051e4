"""The program that runs cases, built for AArch64 and for this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tersor.backends.neon import toolchain
from tersor.backends.neon.machine import Machine
from tersor.ir.errors import MissingDependencyError

from .lowered import SANITIZED, Machines, build_kernels

ROOT = Path(__file__).resolve().parents[3]
DRIVER = ROOT / "benchmarks" / "neon" / "run_cases.c"
KERNELS = sorted(toolchain.KERNELS.glob("*.c"))


def unavailable(why: str) -> None:
    """Under CI a missing tool is a failure; elsewhere the test is skipped, and says what to install."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def compiler() -> toolchain.Compiler:
    try:
        return toolchain.find_compiler()
    except MissingDependencyError as error:
        unavailable(str(error))
        raise


@pytest.fixture(scope="session")
def emulator() -> str:
    try:
        return toolchain.find_emulator()
    except MissingDependencyError as error:
        unavailable(str(error))
        raise


@pytest.fixture(scope="session")
def arm_program(compiler: toolchain.Compiler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver with the NEON kernels."""
    folder = tmp_path_factory.mktemp("arm")
    return compiler.build([*KERNELS, DRIVER], folder / "run_cases", ["-Werror"])


@pytest.fixture(scope="session")
def host_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver with the portable kernels, under the address and undefined-behaviour sanitizers."""
    host = shutil.which("cc")
    if host is None:
        unavailable("no C compiler: apt-get install gcc libc6-dev")
    program = tmp_path_factory.mktemp("host") / "run_cases"
    flags = [*toolchain.FLAGS, "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    words = ["cc", *flags, f"-I{toolchain.KERNELS}", *map(str, [*KERNELS, DRIVER]), "-o", str(program)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program


@pytest.fixture(scope="session")
def machines(compiler: toolchain.Compiler, emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """Every machine that models are run on."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        unavailable("no C compiler or no make: apt-get install gcc libc6-dev make")
    host, arm = tmp_path_factory.mktemp("kernels_host"), tmp_path_factory.mktemp("kernels_arm")
    portable = build_kernels(host, toolchain.Compiler(("cc",), portable=True), [*SANITIZED, "-DTERSOR_PORTABLE", "-O1"])
    native = build_kernels(arm, compiler, ["-Werror"])
    return Machines(
        Machine(portable=True, flags=(*SANITIZED, "-O1"), kernels=portable), Machine(flags=("-Werror",), kernels=native)
    )
