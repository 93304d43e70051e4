"""The C++ compiler that simulations need."""

from __future__ import annotations

import os

import pytest

from tersor.backends.hls import simulate, toolchain
from tersor.backends.hls.toolchain import find_compiler, has_compiler
from tersor.ir.errors import MissingDependencyError


@pytest.fixture(scope="session")
def compiler() -> str:
    """Under CI a missing compiler is a failure; elsewhere the test is skipped, and says what to install."""
    try:
        return find_compiler()
    except MissingDependencyError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def quick_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small designs are not optimized, which would take longer than it saves; slow tests compile them as users do."""
    if request.node.get_closest_marker("slow") is None and has_compiler():
        simulate._program()  # which runs for longer, so it is compiled as it always is
        flags = tuple("-O0" if flag == "-O1" else flag for flag in toolchain._FLAGS)
        monkeypatch.setattr(toolchain, "_FLAGS", flags)
