"""Who runs a sweep: processes that die or are killed, Ctrl-C, and other people's executors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import tersor as ts
from tersor.cli import main
from tersor.ir.errors import RecipeError, TersorError
from tersor.sweeps import Grid, Sweep, sweep
from tersor.sweeps.job import Job
from tersor.sweeps.settings import Setting
from tersor.sweeps.workers import Processes, packed

SCHEMES = Grid("int8", {"quantize.scheme": ["int8", "int4", "int8_symmetric"]})
FILE = """
model: zoo:model
data: zoo:batches
metric: zoo:slow
recipe: int8
grid:
  quantize.scheme: [int8, int8_symmetric, int8_per_tensor, w4a8]
"""


def test_a_worker_that_dies_takes_its_own_try_alone(folder: Path) -> None:
    found = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", metric="zoo:dies", workers=2, progress=False)
    errors = {row.name: row.error for row in found.rows}
    assert "died" in errors["scheme=int4"]
    assert errors["scheme=int8"] == errors["scheme=int8_symmetric"] == ""


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def started(folder: Path) -> subprocess.Popen[str]:
    """`tersor sweep` in a process group of its own, once it has finished a try."""
    (folder / "sweep.yaml").write_text(FILE)
    command = [sys.executable, "-m", "tersor", "sweep", "sweep.yaml", "--out", "out", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("out/points/*.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie, whom nobody has waited for, has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_sweep_that_is_killed_goes_on_where_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = started(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = {int(pid) for pid in lines(folder / "calls.txt")}
    deadline = time.monotonic() + 60
    while not all(map(gone, workers)):
        assert time.monotonic() < deadline, "a worker outlived the process that started it"
        time.sleep(0.05)
    kept = Sweep.load("out")
    assert 1 <= len(kept.rows) <= 3
    before = len(lines(folder / "calls.txt"))
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["sweep", "sweep.yaml", "--out", "out", "--workers", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["error"] for row in rows] == [""] * 4
    assert len(lines(folder / "calls.txt")) - before == 4 - len(kept.rows)
    assert {row.key: row.metric for row in kept.rows}.items() <= {row["key"]: row["metric"] for row in rows}.items()
    assert not list(folder.glob("out/**/*.tmp"))


def test_an_interrupt_keeps_what_is_finished_and_ends_the_workers(folder: Path) -> None:
    process = started(folder)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert "leaked" not in errors
    assert all(gone(int(pid)) for pid in lines(folder / "calls.txt"))
    assert Sweep.load("out").rows


def test_what_cannot_travel_is_named_before_anything_runs(folder: Path) -> None:
    batches = [torch.zeros(1, 3, 8, 8)]
    with pytest.raises(RecipeError, match=r"metric cannot be sent .*(.|\n)*module:function"):
        sweep("zoo:model", ["float"], out="out", metric=lambda program: 1.0)
    with pytest.raises(RecipeError, match=r"Quantize\.calibration cannot be sent"):
        sweep("zoo:model", [[ts.Quantize(ts.INT8, calibration=(batch for batch in batches))]], out="out")
    assert not list(folder.glob("out/points/*"))


def test_a_worker_that_dies_while_it_measures_is_an_error_of_its_try(folder: Path) -> None:
    workers = Processes(1)
    job = Job("k", Setting("a", ()), folder, folder)
    import zoo  # type: ignore[import-not-found]  # written by the fixture

    assert "died" in workers.call(zoo.exits, job).error
    assert workers.call(zoo.echo, job).error == "echo"
    workers.stop(now=False)


def test_a_script_without_a_guard_is_told_of_it(folder: Path) -> None:
    (folder / "script.py").write_text("import tersor as ts\nts.sweep('zoo:model', ['float'], out='out', workers=1)\n")
    run = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert 'if __name__ == "__main__":' in run.stderr.splitlines()[-1]


def test_a_pool_of_ones_own_gets_tensors_by_value(folder: Path) -> None:
    batches = [torch.zeros(1, 3, 8, 8)]
    with ProcessPoolExecutor(1) as executor:
        tries = [[ts.Quantize(ts.INT8, calibration=batches)], "int8"]
        found = sweep("zoo:model", tries, out="out", data=batches, metric="zoo:score", executor=executor)
    assert [row.error for row in found.rows] == ["", ""]
    assert not batches[0].is_shared()


class Broken(Executor):
    """Fails as a cluster does that lost its workers."""

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(self.error)
        return future

    def __init__(self, error: Exception) -> None:
        self.error = error


def test_an_executor_that_breaks_ends_the_sweep_and_one_that_loses_a_try_does_not(folder: Path) -> None:
    from concurrent.futures import BrokenExecutor

    with pytest.raises(TersorError, match="run the sweep again"):
        sweep("zoo:model", ["float"], out="out", executor=Broken(BrokenExecutor("no workers")))
    assert Sweep.load("out").pending == 1
    with pytest.raises(OSError, match="No space"):
        sweep("zoo:model", ["float"], out="out", executor=Broken(OSError(28, "No space left on device")))
    found = sweep("zoo:model", ["float"], out="out", executor=Broken(RuntimeError("killed")))
    assert "killed" in found.rows[0].error


@pytest.fixture
def cluster(folder: Path) -> Iterator[Any]:
    """Dask with two worker processes on this machine."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as workers,
        Client(workers) as client,
    ):
        client.run(sys.path.insert, 0, str(folder))
        yield client


def test_a_dask_cluster_runs_a_sweep(cluster: Any, folder: Path) -> None:
    tries: Any = {"int8": "int8", "float": "float", "mine": [ts.FoldBatchNorm()], "bad": "int4_weights"}
    found = sweep(
        "zoo:model", tries, out="out", data="zoo:batches", metric="zoo:score", executor=cluster.get_executor()
    )
    assert [row.error for row in found.rows] == [""] * 4
    pids = {int(pid) for pid in lines(folder / "calls.txt")}
    assert os.getpid() not in pids
    assert len(pids) == 2
    alone = sweep("zoo:model", {"int8": "int8"}, out="alone", data="zoo:batches", metric="zoo:score", workers=1)
    assert alone.rows[0].metric == found.rows[0].metric


def test_packing_names_the_innermost_part() -> None:
    quantize = ts.Quantize(ts.INT8, calibration=[torch.zeros(1), lambda: 1])
    with pytest.raises(RecipeError, match=r"^Quantize\.calibration"):
        packed(Job("k", Setting("a", (ts.FoldBatchNorm(), quantize)), Path(), Path()))
