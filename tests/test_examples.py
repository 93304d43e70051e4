"""The examples run."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


PRINTED = {
    "custom_pass": "replace_silu",
    "custom_backend": "the same bits on 1000 inputs: True",
    "rewrite_rule": "aten.gelu",
    "quantize_cnn": "100% of the multiply-accumulates in integer",
    "quantize_transformer": "dB in ONNX Runtime",
    "mixed_precision": "int4_weights",
    "onnx_to_onnx": "compressed/model.onnx",
    "neon": "values that differ from the program: 0",
    "fpga": "values that differ from the program: 0",
}
"""What an example prints where all went well."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.emulated) if name == "neon" else name for name in PRINTED]
)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_module(f"examples.{name}", run_name="__main__", alter_sys=True)
    assert PRINTED[name] in capsys.readouterr().out


def test_every_example_is_run() -> None:
    """Here by name, or by a test of its own below; `digits` is what the others share."""
    own = {"demo", "distill", "prune_channels", "train_quantized"}
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {*PRINTED, *own, "digits", "__init__"}


@pytest.mark.slow
def test_a_teacher_is_worth_more_than_few_labels() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.distill"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    few, taught = (float(line.split("%")[0].split()[-1]) for line in done.stdout.splitlines()[-2:])
    assert taught > few


def test_the_notebook_is_the_quick_start() -> None:
    spec = importlib.util.spec_from_file_location("site_notebook", ROOT / "docs" / "site" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    written = site.NOTEBOOK.read_text(encoding="utf-8")
    assert written == site.notebook(site.PAGE.read_text(encoding="utf-8")), "run: python docs/site/notebook.py"


def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "stream"]
    assert any("100% of the work in integer" in text for text in printed)
    assert (tmp_path / "build" / "small.tersor").exists()


@pytest.mark.slow
def test_pruning_in_steps_prints_every_score() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.prune_channels"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score") == 3
    assert float(done.stdout.split()[-1]) > 0.9


def test_the_demo_prints_its_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for row in ("float, torch", "float, onnxruntime", "int8, onnxruntime", "100%"):
        assert row in done.stdout
    assert (tmp_path / "onnxruntime" / "int8" / "model.onnx").exists()


def test_training_quantized_prints_what_it_is_worth(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.train_quantized", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines()[-4:])
    found = {name.strip(): float(score.rstrip("%")) for name, score in scores.items()}
    assert found["trained quantized"] > found["rounded after training"]
    assert abs(found["the same in ONNX Runtime"] - found["trained quantized"]) < 1


@pytest.mark.parametrize("name", ["pass_time", "resnet50_int8"])
def test_a_benchmark_runs_quickly_and_writes_nothing(name: str) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.glob("*")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--quick"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    assert {path: path.stat().st_mtime_ns for path in results.glob("*")} == before
