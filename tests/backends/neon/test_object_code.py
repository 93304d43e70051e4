"""What the compiler made of the kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tersor.backends.neon import toolchain

from .conftest import KERNELS, unavailable

FUSED = re.compile(r"\tf(n?m(add|sub)|ml[as])\t")


def disassemble(compiler: toolchain.Compiler, source: Path, folder: Path, flags: tuple[str, ...] = ()) -> str:
    name = "objdump" if toolchain.is_native() else "aarch64-linux-gnu-objdump"
    if shutil.which(name) is None:
        unavailable(f"no {name}: apt-get install binutils-aarch64-linux-gnu")
    code = compiler.compile(source, folder / f"{source.stem}.o", flags)
    return subprocess.run([name, "-d", str(code)], capture_output=True, text=True, check=True).stdout


@pytest.mark.emulated
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_no_multiply_is_fused_with_an_add(source: Path, compiler: toolchain.Compiler, tmp_path: Path) -> None:
    assert not FUSED.search(disassemble(compiler, source, tmp_path))


@pytest.mark.emulated
def test_a_fused_multiply_is_found(compiler: toolchain.Compiler, tmp_path: Path) -> None:
    source = toolchain.KERNELS / "sums_neon.c"
    assert FUSED.search(disassemble(compiler, source, tmp_path, ("-ffp-contract=fast",)))


@pytest.mark.emulated
@pytest.mark.parametrize(("name", "instruction"), [("dense_dotprod", "sdot"), ("dense_i8mm", "smmla")])
def test_a_kernel_uses_what_it_is_named_after(
    name: str, instruction: str, compiler: toolchain.Compiler, tmp_path: Path
) -> None:
    code = disassemble(compiler, toolchain.KERNELS / f"{name}.c", tmp_path)
    assert f"\t{instruction}\t" in code


@pytest.mark.emulated
def test_only_the_named_files_need_more_than_baseline(compiler: toolchain.Compiler, tmp_path: Path) -> None:
    for source in KERNELS:
        if not source.stem.endswith(("_dotprod", "_i8mm")):
            assert not re.search(r"\t(sdot|udot|smmla)\t", disassemble(compiler, source, tmp_path)), source.name
