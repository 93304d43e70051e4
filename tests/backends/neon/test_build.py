"""Every way to build a library works without a warning, and the objects hold nothing that they must not."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.backends.neon import toolchain
from tersor.backends.neon.artifact import NeonArtifact
from tersor.backends.neon.backend import Neon
from tersor.backends.neon.machine import BUILDS, Machine
from tersor.ir.errors import ArchiveError, LoweringError
from tersor.ir.program import Program

from .conftest import unavailable
from .lowered import Machines, lower, quantized

OBJDUMP = "objdump" if toolchain.is_native() else "aarch64-linux-gnu-objdump"
NM = OBJDUMP.replace("objdump", "nm")
FUSED = re.compile(r"\tf(n?m(add|sub)|ml[as])\t")
FORBIDDEN = {"malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc"}


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3, 2, 1), nn.SiLU(), nn.Flatten(2), nn.Linear(16, 5))
    return quantized(model, (torch.randn(1, 3, 8, 8),))


def assert_runs(program: Program, artifact: NeonArtifact) -> None:
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(artifact.run(x), program(x))


@pytest.mark.emulated
def test_the_library_allocates_nothing_and_writes_no_global(
    program: Program, machines: Machines, tmp_path: Path
) -> None:
    folder = lower(program, tmp_path).on(replace(machines.emulated, kernels=None)).build()
    library = str(folder / "libmodel.a")
    names = subprocess.run([NM, "--undefined-only", "-j", library], capture_output=True, text=True, check=True).stdout
    assert not FORBIDDEN & set(names.split())
    headers = subprocess.run([OBJDUMP, "-h", library], capture_output=True, text=True, check=True).stdout
    writable = re.findall(r"^ *\d+ (\.(?:data|bss)) +([0-9a-f]+)", headers, re.MULTILINE)
    assert writable
    assert all(int(size, 16) == 0 for _, size in writable), writable


@pytest.mark.emulated
def test_nothing_generated_is_fused(program: Program, machines: Machines, tmp_path: Path) -> None:
    folder = lower(program, tmp_path).on(machines.emulated).build()
    code = subprocess.run(
        [OBJDUMP, "-d", str(folder / "libmodel.a")], capture_output=True, text=True, check=True
    ).stdout
    assert "model_run" in code
    assert not FUSED.search(code)


@pytest.mark.emulated
def test_cmake_builds_what_make_builds(program: Program, machines: Machines, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        unavailable("no cmake: apt-get install cmake")
    artifact = lower(program, tmp_path / "out", ("neon", "dotprod"))
    compiler = machines.emulated.compiler()[0]
    options = [f"-DCMAKE_C_COMPILER={compiler}", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    options += ["-DCMAKE_C_FLAGS=-Werror -O1", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    for words in (["-S", str(artifact.path), *options], ["--build", "."]):
        result = subprocess.run(["cmake", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    x = torch.randn(1, 3, 8, 8)
    found = Machine(cpu="cortex-a53").execute(tmp_path / "main", artifact.frames([x])[0])
    assert found == program(x).numpy().tobytes()


def test_clang_takes_every_kernel(tmp_path: Path) -> None:
    """GCC takes more than Clang does, as an operand that is constant only once it is inlined."""
    if find_spec("ziglang") is None:
        unavailable("no ziglang: pip install 'tersor[neon]'")
    for source in sorted(toolchain.KERNELS.glob("*.c")):
        toolchain.ZIG.compile(source, tmp_path / "kernel.o", ("-Werror", "-O0"))


@pytest.mark.slow
@pytest.mark.emulated
def test_zig_builds_it(program: Program, tmp_path: Path, emulator: str) -> None:
    if find_spec("ziglang") is None:
        unavailable("no ziglang: pip install 'tersor[neon]'")
    artifact = lower(program, tmp_path)
    for isa in ("neon", "dotprod", "i8mm"):
        assert_runs(program, artifact.on(Machine(isa=isa, command=toolchain.ZIG.command, flags=("-Werror", "-O0"))))


@pytest.mark.emulated
def test_an_instruction_set_that_is_not_there_is_named(program: Program, machines: Machines, tmp_path: Path) -> None:
    artifact = lower(program, tmp_path, ("neon", "i8mm"))
    with pytest.raises(LoweringError, match="no instruction set"):
        artifact.on(replace(machines.emulated, isa="i8mm", cpu="cortex-a53")).run(torch.randn(1, 3, 8, 8))
    assert_runs(program, artifact.on(replace(machines.emulated, cpu="cortex-a53")))


@pytest.mark.emulated
def test_an_artifact_opens_again_and_knows_when_it_is_damaged(
    program: Program, machines: Machines, tmp_path: Path
) -> None:
    lower(program, tmp_path, ("neon",))
    assert_runs(program, Neon.open(tmp_path).on(machines.emulated))
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArchiveError, match=r"weights\.bin"):
        Neon.open(tmp_path)


@pytest.mark.emulated
def test_a_build_that_was_cut_off_is_not_taken_for_a_whole_one(
    program: Program, machines: Machines, tmp_path: Path
) -> None:
    artifact = lower(program, tmp_path, ("neon",)).on(replace(machines.emulated, flags=("-not-a-flag",)))
    with pytest.raises(LoweringError, match="not-a-flag"):
        artifact.build()
    assert not list((tmp_path / BUILDS).iterdir())


def test_what_the_library_cannot_compute_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softsign())
    x = torch.randn(1, 3, 4, 4)
    result = ts.PassManager([ts.Quantize(ts.INT8, calibration=[x])], progress=False).run(
        ts.trace(nn.Sequential(model, _Sorted()), x)
    )
    with pytest.raises(LoweringError, match=r"sort.*test_build\.py"):
        ts.lower(result.program, target="neon", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, dim=1).values


def test_options_are_checked() -> None:
    with pytest.raises(LoweringError, match="avx512"):
        Neon(isas=("avx512",))
    with pytest.raises(LoweringError, match="my-model"):
        Neon(library="my-model")


def test_compress_puts_everything_on_grids(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(1, 3, 8, 8)
    artifact = ts.compress(model, x, target="neon", calibration=[x], out=tmp_path)
    assert {row.precision for row in artifact.report.audit} == {"int8"}
    assert artifact.report.integer_share == 1.0
    assert any(row.operator.startswith("dense_vector") and "zeros" in row.reason for row in artifact.report.audit)


def test_nothing_of_an_earlier_lowering_is_left_to_compile(program: Program, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    ts.lower(program, Neon(), old)
    (old / "kernels" / "kernel_of_before.c").write_text("#error\n")
    for folder in (old, new):
        folder.mkdir(exist_ok=True)
        ts.lower(program, Neon(isas=("neon",)), folder)
    listed = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (old, new)]
    assert listed[0] == listed[1]
