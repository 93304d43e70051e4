"""A missing tool is named with what to install; a compiler that fails says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.backends.neon import toolchain
from tersor.ir.errors import LoweringError, MissingDependencyError

from .conftest import unavailable


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="apt-get install gcc-aarch64-linux-gnu"):
        toolchain.find_compiler()
    with pytest.raises(MissingDependencyError, match="apt-get install qemu-user"):
        toolchain.find_emulator()


def test_nothing_is_skipped_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install it"):
        unavailable("install it")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="install it"):
        unavailable("install it")


@pytest.mark.emulated
def test_a_failing_compiler_says_why(compiler: toolchain.Compiler, tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(LoweringError, match="nothing"):
        compiler.build([source], tmp_path / "wrong")
