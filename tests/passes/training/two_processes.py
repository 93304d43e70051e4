"""What test_processes runs under torchrun and alone: `two_processes.py OUT BATCH_SIZE`."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import tersor as ts
from tersor.passes.processes import rank, world
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.groups import groups
from tersor.passes.training.loop import fit
from tersor.passes.training.program_task import ProgramTask, Settings

spec = importlib.util.spec_from_file_location("networks", Path(__file__).with_name("networks.py"))
assert spec is not None and spec.loader is not None  # noqa: PT018  # not a test
networks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(networks)

X, Y = networks.data(96)


def train(size: int, options: ts.Training, **settings: Any) -> tuple[ts.Program, list[float]]:
    batches = list(zip(X.split(size), Y.split(size), strict=True))
    given = {"metric": networks.accuracy, "validation": [(X[:50], Y[:50]), (X[50:], Y[50:])], **settings}
    task = ProgramTask(networks.program(), Settings(F.cross_entropy, **given), options=options)
    outcome = fit(task, batches, options)
    return task.result(), [outcome.loss, outcome.metric or 0.0, outcome.steps]


def main(out: Path, size: int) -> None:
    ts.join_processes()
    options = ts.Training(epochs=3, learning_rate=0.01, clip_norm=1.0, progress=False)
    programs, figures = {}, {}
    programs["frozen"], figures["frozen"] = train(size, options, freeze_batch_norm=0.0)
    programs["moving"], figures["moving"] = train(size, options)
    programs["sharded"], figures["sharded"] = train(size, dataclasses.replace(options, shard=True))
    folder = out / "checkpoints"
    short = ts.Training(steps=6, learning_rate=0.01, checkpoint=folder, checkpoint_every=2, progress=False)
    programs["kept"], _ = train(size, short)
    programs["again"], _ = train(size, short)

    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 80, 16)]
    inputs = [x for x, _ in batches]
    for observer in (ts.Observer.MIN_MAX, ts.Observer.MSE, ts.Observer.OUTPUT):
        quantize = ts.Quantize(ts.INT8, calibration=inputs, observer=observer)
        programs[observer.value] = ts.PassManager([quantize], progress=False).run(networks.program()).program
    program = networks.program()
    chosen = groups(program, dimensions(program))
    for name, criterion in {
        "taylor": ts.Taylor(batches, F.cross_entropy), "variance": ts.ActivationVariance(inputs),
    }.items():  # fmt: skip
        gathered = criterion.gather(program, chosen)
        scores = [criterion.score(group, gathered) for group in chosen]
        figures[name] = [value for score in scores if score is not None for value in score.tolist()]
    figures["world"] = [world()]
    for name, result in programs.items():
        result.save(out / f"{name}-{rank()}.tersor")
    (out / f"figures-{rank()}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
