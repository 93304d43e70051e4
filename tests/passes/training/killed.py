"""A training run that kills itself, for test_resuming: `python killed.py FOLDER OUT [STEP]`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import tersor as ts
from tersor.passes.training.loop import fit

spec = importlib.util.spec_from_file_location("networks", Path(__file__).with_name("networks.py"))
assert spec is not None and spec.loader is not None  # noqa: PT018  # not a test
networks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(networks)


def main(folder: str, out: str, kill_at: int) -> None:
    """Train with everything that has a state: dropout, shuffling, momentum, an average, the best state."""
    x, y = networks.data()
    steps = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(logits, labels)

    options = ts.Training(
        epochs=4, learning_rate=0.02, average=0.8, checkpoint=folder, checkpoint_every=4, evaluate_every=3,
        progress=False,
    )  # fmt: skip
    task = networks.task(loss, networks.program(dropout=0.3), metric=networks.accuracy, validation=[(x, y)])
    outcome = fit(task, ts.ShuffledBatches(x, y, size=16), options)
    task.result().save(out)
    print(outcome.resumed_at, outcome.metric, outcome.best_step, outcome.loss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else -1)
