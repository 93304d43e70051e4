"""The C++ compiler that simulations need."""

from __future__ import annotations

import os

import pytest

from tersor.backends.hls.toolchain import find_compiler
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
