"""The kernels execute no more instructions than was wanted of them, counted exactly, and the counter counts."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tersor.backends.neon import toolchain

from .conftest import ROOT, unavailable

PLUGIN = ROOT / "benchmarks" / "neon" / "count_instructions.c"
KNOWN = """
int main(void)
{
    __asm__ volatile("hint #96\\n mov x9, #1000\\n1: nop\\n subs x9, x9, #1\\n b.ne 1b\\n hint #97" : : : "x9", "cc");
    for (int i = 0; i < 3; i++)
        __asm__ volatile(".arch armv8.6-a\\n hint #96\\n sdot v0.4s, v1.16b, v2.16b\\n sdot v0.4s, v1.16b, v2.4b[1]\\n"
                         "smmla v0.4s, v1.16b, v2.16b\\n smlal v0.8h, v1.8b, v2.8b\\n smull2 v0.8h, v1.16b, v2.16b\\n"
                         "add v0.4s, v1.4s, v2.4s\\n fmul v0.4s, v1.4s, v2.4s\\n ldr q0, [sp]\\n hint #97" : : : "v0");
    return 0;
}
"""


def build_plugin(folder: Path) -> Path:
    if shutil.which("cc") is None:
        unavailable("no C compiler: apt-get install gcc libc6-dev")
    library = folder / "libcount.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(["cc", *flags, str(PLUGIN), "-o", str(library)], check=True)
    return library


@pytest.mark.emulated
def test_known_programs_are_counted_exactly(compiler: toolchain.Compiler, emulator: str, tmp_path: Path) -> None:
    source = tmp_path / "known.c"
    source.write_text(KNOWN)
    program = compiler.build([source], tmp_path / "known")
    report = tmp_path / "counts"
    plugin = f"{build_plugin(tmp_path)},out={report}"
    subprocess.run([emulator, "-cpu", "max", "-plugin", plugin, str(program)], check=True)
    # A move and a thousand rounds of three; then eight instructions, five of which multiply and add.
    assert report.read_text().splitlines() == ["3001 0", "8 5", "8 5", "8 5"]


@pytest.mark.emulated
@pytest.mark.usefixtures("compiler", "emulator")
def test_no_kernel_needs_more_than_its_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    rows = importlib.import_module("benchmarks.neon_kernels").run(True)
    assert any(row.what == "dense, dotprod" for row in rows)
    assert [row for row in rows if row.note] == []


RECORDED = ROOT / "benchmarks" / "results" / "neon_models.json"
DRIFT = 1.03
"""Another version of the compiler may give a few instructions more."""


def check_models(monkeypatch: pytest.MonkeyPatch, names: set[str], forms: set[str] | None = None) -> None:
    """No model takes more instructions than is on record; its bits are checked in the same run."""
    monkeypatch.syspath_prepend(ROOT)
    models = importlib.import_module("benchmarks.neon_models")
    cases = [case for case in models.cases(False) if case.name in names]
    counted = [(case, form) for case in cases for form in case.forms if forms is None or form in forms]
    rows = [row for case, form in counted for row in models.rows_of(case, form)]
    found = {row.what: row.ours for row in rows if row.unit == "M instructions"}
    recorded = {row["what"]: row["ours"] for row in json.loads(RECORDED.read_text())["rows"]}
    more = {what: (count, recorded.get(what)) for what, count in found.items() if count > DRIFT * recorded.get(what, 0)}
    assert found
    assert not more, more


@pytest.mark.emulated
@pytest.mark.usefixtures("compiler", "emulator")
def test_a_small_model_takes_no_more_than_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense and in the largest blocks; the slow test takes every form."""
    check_models(monkeypatch, {"ResNet-8, digits"}, {"dense", "4x8 sparse"})


@pytest.mark.emulated
@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "emulator")
def test_no_model_takes_more_than_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    check_models(monkeypatch, {"ResNet-8, digits", "MobileNetV2", "ResNet-50"})
