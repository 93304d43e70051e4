"""The examples run."""

from __future__ import annotations

import copy
import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


Run = Callable[..., str]


@pytest.fixture(scope="module")
def network() -> Any:
    """A small network of digits for all examples, trained as they do it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        digits = importlib.import_module("examples.digits")
        return digits.train(digits.load(), epochs=4, width=16)


@pytest.fixture
def run(network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(module, *words)` is `python -m module words`, in this process and a new folder; gives what it prints."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("examples.digits.train", lambda data, **options: copy.deepcopy(network))

    def run(module: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *words])
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.emulated) if name == "neon" else name for name in PRINTED]
)
def test_an_example_runs(name: str, run: Run) -> None:
    assert PRINTED[name] in run(f"examples.{name}")


def test_every_example_is_run() -> None:
    """Here by name, or by a test of its own below; `digits` is what the others share."""
    own = {"demo", "distill", "prune_channels", "train_quantized"}
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {*PRINTED, *own, "digits", "__init__"}


@pytest.mark.slow
def test_a_teacher_is_worth_more_than_few_labels(run: Run) -> None:
    printed = run("examples.distill")
    few, taught = (float(line.split("%")[0].split()[-1]) for line in printed.splitlines()[-2:])
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
def test_pruning_in_steps_prints_every_score(run: Run) -> None:
    printed = run("examples.prune_channels")
    assert printed.count("score") == 3
    assert float(printed.split()[-1]) > 0.9


def test_the_demo_prints_its_table(run: Run) -> None:
    printed = run("examples.demo", "out")
    for row in ("float, torch", "float, onnxruntime", "int8, onnxruntime", "100%"):
        assert row in printed
    assert Path("out/onnxruntime/int8/model.onnx").exists()


def test_training_quantized_prints_what_it_is_worth(run: Run) -> None:
    printed = run("examples.train_quantized", "out")
    scores = dict(line.rsplit(maxsplit=1) for line in printed.splitlines()[-4:])
    found = {name.strip(): float(score.rstrip("%")) for name, score in scores.items()}
    assert found["trained quantized"] > found["rounded after training"]
    assert abs(found["the same in ONNX Runtime"] - found["trained quantized"]) < 1


@pytest.mark.parametrize("name", ["pass_time", "resnet50_int8"])
def test_a_benchmark_runs_quickly_and_writes_nothing(name: str, run: Run) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.glob("*")}
    assert name in run("benchmarks", name, "--quick")
    assert {path: path.stat().st_mtime_ns for path in results.glob("*")} == before
