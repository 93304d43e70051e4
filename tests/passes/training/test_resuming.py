"""A run that is killed goes on from its last checkpoint to the same bits."""

from __future__ import annotations

import errno
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tersor as ts
from tersor.ir.errors import TrainingError
from tersor.passes.training.checkpoints import Checkpoints, Snapshot
from tersor.passes.training.loop import Outcome, fit
from tersor.passes.training.program_task import ProgramTask

from . import networks

SCRIPT = Path(__file__).with_name("killed.py")
X, Y = networks.data()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes of `killed.py`: more threads add in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_kill_9_and_resume_gives_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPT))["main"](tmp_path / "whole", tmp_path / "whole.tersor", -1)
    whole = capsys.readouterr().out
    killed = run(tmp_path / "runs", tmp_path / "killed.tersor", 15)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.tersor").exists()
    again = run(tmp_path / "runs", tmp_path / "killed.tersor")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[0] == "12"
    assert again.stdout.split()[1:] == whole.split()[1:]
    assert networks.same(ts.Program.load(tmp_path / "killed.tersor"), ts.Program.load(tmp_path / "whole.tersor"))


def train(folder: Path, batches: Any = None, **changes: Any) -> tuple[ProgramTask, Outcome]:
    task = networks.task()
    options = ts.Training(**{"steps": 8, "checkpoint": folder, "checkpoint_every": 2, "progress": False, **changes})
    return task, fit(task, batches or ts.ShuffledBatches(X, Y, size=16), options)


def test_a_run_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    first, _ = train(tmp_path)
    second, outcome = train(tmp_path)
    assert outcome.resumed_at == 8
    assert networks.same(first.program, second.program)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    first, _ = train(tmp_path)
    (tmp_path / "step-000000008.safetensors").write_bytes(b"cut off")
    second, outcome = train(tmp_path)
    assert outcome.resumed_at == 6
    assert networks.same(first.program, second.program)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"learning_rate": 0.5}, "another run: learning_rate"), ({"steps": 9}, "another run: steps")],
)
def test_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    train(tmp_path)
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, **changes)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    train(tmp_path)
    program = networks.program()
    program.set_tensor("7.bias", torch.ones(3))
    options = ts.Training(steps=8, checkpoint=tmp_path, checkpoint_every=2, progress=False)
    with pytest.raises(TrainingError, match="the tensors that it began with"):
        fit(networks.task(given=program), ts.ShuffledBatches(X, Y, size=16), options)


def test_other_data_is_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=10)
    (tmp_path / "step-000000010.safetensors").unlink()
    other = ts.ShuffledBatches(-X, Y, size=16)
    with pytest.raises(TrainingError, match="not what the run that was stopped read"):
        train(tmp_path, other, steps=10)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000006.safetensors",
        "step-000000008.safetensors",
    ]


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".step-000000004.1.tmp").write_bytes(b"half")
    Checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_hold_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot hold checkpoints"):
        Checkpoints(tmp_path / "file")


def test_a_full_disk_is_an_error_and_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(Snapshot(1, {"x": torch.zeros(1)}))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        kept.save(Snapshot(2, {"x": torch.ones(1)}))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.safetensors"]
