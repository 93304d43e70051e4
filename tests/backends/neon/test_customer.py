"""The library in other people's programs: strict compilers, C++, two models, CMake, threads, and odd names."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.backends.neon import kernel_names, toolchain
from tersor.backends.neon.backend import Neon
from tersor.backends.neon.machine import Machine
from tersor.ir.errors import LoweringError
from tersor.ir.program import Program

from .conftest import unavailable
from .lowered import DRIVER, Machines, lower, quantized

STRICT = ("-std=c11", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror")
X = torch.arange(192, dtype=torch.float32).reshape(1, 3, 8, 8) / 96 - 1


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3, 2, 1), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(2), nn.Linear(4, 5))
    return quantized(model, (torch.randn(1, 3, 8, 8),))


def compile_with(words: Sequence[object], folder: Path) -> None:
    result = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.emulated
@pytest.mark.parametrize("command", [("gcc",), toolchain.ZIG.command[:4]], ids=["gcc", "clang of zig"])
def test_strict_compilers_have_nothing_to_say(command: tuple[str, ...], program: Program, tmp_path: Path) -> None:
    if "ziglang" in command and find_spec("ziglang") is None:
        unavailable("no ziglang: pip install 'tersor[neon]'")
    lower(program, tmp_path)
    kernels = sorted((tmp_path / "kernels").glob("*.c"))
    given = ["-I.", "-Ikernels", "-ffp-contract=off", "-D_POSIX_C_SOURCE=200112L", "-DTERSOR_PORTABLE", "weights.S"]
    library = [*command, *STRICT, *given, *kernels, *sorted(tmp_path.glob("model*.c"))]
    for name in ("main", "bench"):
        compile_with([*library, f"{name}.c", "-o", name], tmp_path)


TWO = """
#include <stdio.h>
#include "first.h"
#include "m.h"
alignas(64) static char arena[FIRST_ARENA_SIZE + M_ARENA_SIZE];
static float x[192], y[2][45];
int main()
{
    if (fread(x, sizeof(float), 192, stdin) != 192) return 9;
    first_call a = {};
    a.inputs[0] = x; a.input_counts[0] = 192; a.outputs[0] = y[0]; a.output_counts[0] = 45;
    a.arena = arena; a.arena_size = sizeof arena;
    m_call b = {};
    b.inputs[0] = x; b.input_counts[0] = 192; b.outputs[0] = y[1]; b.output_counts[0] = 45;
    b.arena = arena; b.arena_size = sizeof arena;
    if (first_run(&a) != FIRST_OK || m_run(&b) != M_OK) return 1;
    return fwrite(y, sizeof y, 1, stdout) == 1 ? 0 : 2;
}
"""


def of_another_version(folder: Path) -> Path:
    """The kernels with one more field in a structure."""
    shutil.copytree(toolchain.KERNELS, folder, dirs_exist_ok=True)
    header = folder / "tersor_kernels.h"
    text = header.read_text()
    header.write_text(text.replace("    int32_t channels; /*", "    double added[4];\n    int32_t channels; /*"))
    assert header.read_text() != text
    return folder


@pytest.mark.emulated
def test_two_models_in_one_program_of_cplusplus(
    program: Program, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their symbols do not meet, whatever the prefix is; `m` begins the name of main.c as well.

    The second is of another version, whose kernels are called with another structure: each takes its own kernels.
    """
    if shutil.which("c++") is None:
        unavailable("no C++ compiler: apt-get install g++")
    torch.manual_seed(1)
    other = quantized(nn.Sequential(nn.Conv2d(3, 9, 4, 4), nn.Flatten(2), nn.Linear(4, 5)), (X,))
    machine = Machine(portable=True, flags=("-O1", "-Werror"))
    folders = []
    for one, name in ((program, "first"), (other, "m")):
        folders.append(ts.lower(one, Neon(isas=("neon",), library=name), tmp_path / name).on(machine).build())  # type: ignore[attr-defined]
        monkeypatch.setattr(kernel_names, "KERNELS", of_another_version(tmp_path / "kernels"))
        kernel_names.digest.cache_clear()
    (tmp_path / "two.cpp").write_text(TWO)
    libraries = [folder / f"lib{name}.a" for folder, name in zip(folders, ("first", "m"), strict=True)]
    flags = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-std=c++20", *(f"-I{folder}" for folder in folders)]
    compile_with(["c++", *flags, "two.cpp", *libraries, "-o", "two"], tmp_path)
    found = machine.execute(tmp_path / "two", X.numpy().tobytes())
    assert found == b"".join(one(X).numpy().tobytes() for one in (program, other))


@pytest.mark.slow
@pytest.mark.emulated
def test_threads_that_share_layers_do_not_race(program: Program, tmp_path: Path) -> None:
    machine = Machine(portable=True, flags=("-O1", "-g1", "-fsanitize=thread", "-Werror"))
    folder = lower(program, tmp_path, ("dotprod",)).on(machine).build()
    compile_with(["cc", *machine.flags, "-pthread", f"-I{folder}", DRIVER, folder / "libmodel.a", "-o", "t"], tmp_path)
    frame = X.numpy().tobytes()
    assert machine.execute(tmp_path / "t", frame).startswith(program(X).numpy().tobytes())


MAPPED = """
#include <stdio.h>
#include "model.h"
static _Alignas(64) char arena[MODEL_ARENA_SIZE], weights[MODEL_WEIGHTS_SIZE + 1];
static float x[192], y[45];
int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    const size_t size = file ? fread(weights, 1, sizeof weights, file) : 0;
    model_call call = {.inputs = {x}, .input_counts = {192}, .outputs = {y}, .output_counts = {45},
                       .arena = arena, .arena_size = sizeof arena};
    if (model_run(&call) != MODEL_NULL) return 1;
    const int wrong = model_check_weights(weights, size);
    call.weights = weights, call.weights_size = size;
    if (wrong) return fputs(model_message(wrong), stderr), 2;
    if (fread(x, sizeof x, 1, stdin) != 1 || model_run(&call)) return 3;
    return fwrite(y, sizeof y, 1, stdout) == 1 ? 0 : 4;
}
"""


@pytest.mark.emulated
def test_weights_are_read_from_a_file(program: Program, tmp_path: Path) -> None:
    """What is cut off, damaged, empty or of another model is refused before it is used."""
    out = tmp_path / "out"
    lower(program, out, ("neon",))
    (tmp_path / "mapped.c").write_text(MAPPED)
    sources = ["mapped.c", out / "model.c", out / "model_neon.c", *sorted((out / "kernels").glob("*.c"))]
    flags = ["-DMODEL_MAPPED_WEIGHTS", "-DTERSOR_PORTABLE", "-ffp-contract=off", f"-I{out}", f"-I{out / 'kernels'}"]
    sanitized = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compile_with(["cc", *flags, *sanitized, *sources, "-o", "mapped"], tmp_path)
    machine, right = Machine(portable=True), (out / "weights.bin").read_bytes()
    found = machine.execute(tmp_path / "mapped", X.numpy().tobytes(), [str(out / "weights.bin")])
    assert found == program(X).numpy().tobytes()
    flipped = bytearray(right)
    flipped[-100] ^= 16
    for content in (b"", right[:-1], right[:64], bytes(flipped), bytes(len(right)), right[::-1]):
        (tmp_path / "wrong.bin").write_bytes(content)
        with pytest.raises(LoweringError, match="cut off, damaged, or of another model"):
            machine.execute(tmp_path / "mapped", b"", [str(tmp_path / "wrong.bin")])


@pytest.mark.slow
@pytest.mark.emulated
def test_a_project_of_cmake_takes_two_models(program: Program, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        unavailable("no cmake: apt-get install cmake")
    for name in ("first", "second"):
        ts.lower(program, Neon(isas=("neon",), library=name), tmp_path / name)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(both C)\nadd_subdirectory(first)\nadd_subdirectory(second)\n"
        "add_executable(both both.c)\ntarget_link_libraries(both PRIVATE first second)\n"
    )
    (tmp_path / "both.c").write_text(
        '#include "first.h"\n#include "second.h"\nint main(void) { return !(first_steps() && second_steps()); }\n'
    )
    compile_with(["cmake", "-S", ".", "-B", "made", "-DCMAKE_C_FLAGS=-DTERSOR_PORTABLE"], tmp_path)
    compile_with(["cmake", "--build", "made", "--target", "both"], tmp_path)
    compile_with([tmp_path / "made" / "both"], tmp_path)


@pytest.mark.parametrize("name", ["string", "main", "stdint", "tersor_model"])
def test_names_that_would_hide_a_header_are_refused(name: str) -> None:
    with pytest.raises(LoweringError, match="would hide"):
        Neon(library=name)


def test_a_name_of_the_model_cannot_end_a_comment(program: Program, tmp_path: Path) -> None:
    named = program.copy()
    named.name = "*/ #error | x"
    lower(named, tmp_path, ("neon",))
    assert "#error" not in (tmp_path / "model.h").read_text()
    assert "___error___x, 8 layers on int8" in (tmp_path / "README.md").read_text()
