"""Two processes under torchrun do what one process does with batches of twice the size."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tersor as ts

from . import networks

SCRIPT = Path(__file__).with_name("two_processes.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that one process, this one, and two wrote to."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("one", "two")}
    command = [sys.executable, *TORCHRUN, str(SCRIPT), str(folders["two"]), "16"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    two = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        runpy.run_path(str(SCRIPT))["main"](folders["one"], 32)
    output, _ = two.communicate(timeout=300)
    assert two.returncode == 0, output
    return folders


def program(folder: Path, name: str, rank: int = 0) -> ts.Program:
    return ts.Program.load(folder / f"{name}-{rank}.tersor")


def figures(folder: Path, rank: int = 0) -> Any:
    return json.loads((folder / f"figures-{rank}.json").read_text())


def test_there_were_two(runs: dict[str, Path]) -> None:
    assert (figures(runs["one"])["world"], figures(runs["two"])["world"]) == ([1], [2])


@pytest.mark.parametrize("name", ["frozen", "moving", "sharded"])
def test_training_gives_what_one_process_gives(runs: dict[str, Path], name: str) -> None:
    """With batch norm's statistics frozen, and moving: those are taken over the batches of both. And with FSDP2."""
    expected, found = program(runs["one"], name), program(runs["two"], name)
    for key, value in expected.tensors().items():
        torch.testing.assert_close(found.tensor(key), value, rtol=1e-4, atol=1e-5, msg=key)
    assert figures(runs["two"])[name] == pytest.approx(figures(runs["one"])[name], abs=1e-4)


@pytest.mark.parametrize("name", ["frozen", "moving", "sharded", "kept", "min_max", "mse", "output"])
def test_both_processes_hold_the_same_bits(runs: dict[str, Path], name: str) -> None:
    assert networks.same(program(runs["two"], name), program(runs["two"], name, 1))


def test_both_resume_from_the_same_step(runs: dict[str, Path]) -> None:
    assert networks.same(program(runs["two"], "kept"), program(runs["two"], "again"))
    assert (runs["two"] / "checkpoints" / "process-1").is_dir()


@pytest.mark.parametrize("name", ["min_max", "mse"])
def test_calibration_sees_the_data_of_all_processes(runs: dict[str, Path], name: str) -> None:
    expected, found = program(runs["one"], name), program(runs["two"], name)
    scales = [key for key in expected.tensors() if key.endswith((".scale", ".zero_point"))]
    assert scales
    for key in scales:
        assert torch.equal(found.tensor(key), expected.tensor(key)), key


@pytest.mark.parametrize("name", ["taylor", "variance"])
def test_pruning_scores_see_the_data_of_all_processes(runs: dict[str, Path], name: str) -> None:
    assert figures(runs["two"])[name] == pytest.approx(figures(runs["one"])[name], rel=1e-6)
    assert figures(runs["two"])[name] == figures(runs["two"], 1)[name]
