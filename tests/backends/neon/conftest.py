"""The program that runs cases, built for AArch64 and for this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tersor.backends.neon import toolchain
from tersor.ir.errors import MissingDependencyError

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
