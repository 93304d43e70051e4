"""The examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["custom_pass", "rewrite_rule"])
def test_an_example_prints_a_graph_and_a_report(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "program " in done.stdout
    assert "promise" in done.stdout


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
