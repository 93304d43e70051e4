"""A trained model with its data, loss and metric; its weights are kept in a folder that git ignores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tersor as ts

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Trained:
    """A model that was trained, and everything to train and judge it further.

    model: in inference mode; program: the same, traced with a dynamic dimension `batch`.
    train: batches `(inputs, targets)`, shuffled anew each time they are read; test: the same, never trained on.
    loss, metric: of outputs and targets; better: which way the metric is to go.
    training: the options that it was trained with.
    """

    name: str
    model: nn.Module
    program: ts.Program
    train: ts.ShuffledBatches
    test: Sequence[tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], float]
    better: ts.Better
    training: ts.Training

    @property
    def score(self) -> float:
        """The metric of the program on the test data."""
        return self.score_of(self.program)

    def score_of(self, run: Callable[[Tensor], Any]) -> float:
        """The metric of a program, an artifact or anything else that is called with a batch of inputs."""
        with torch.no_grad():
            scores = [(self.metric(run(inputs), targets), len(inputs)) for inputs, targets in self.test]
        return sum(score * rows for score, rows in scores) / sum(rows for _, rows in scores)

    def score_after(self, *passes: ts.Pass, start: ts.Program | None = None, progress: bool | None = False) -> float:
        """The metric of what passes make of the program, or of another that begins elsewhere."""
        result = ts.PassManager(passes, progress=progress).run(self.program if start is None else start)
        return self.score_of(result.program)

    def calibration(self, count: int = 8) -> list[Tensor]:
        """Inputs of the first `count` training batches in the order of the data, the same each time."""
        inputs = self.train.tensors[0]
        return list(inputs.split(self.train.size)[:count])


def trained(
    name: str,
    model: nn.Module,
    train: ts.ShuffledBatches,
    test: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    metric: Callable[[Tensor, Tensor], float],
    better: ts.Better,
    training: ts.Training,
) -> Trained:
    """Train the model with tersor's own loop, or take the weights of the last time that this was done.

    The weights are looked up by everything that decides them: the name, the model's initial weights, options and data.
    """
    example = train.tensors[0][:2]
    argument = "x"
    program = ts.trace(model.eval(), (example,), dynamic={argument: {0: "batch"}})
    file = FOLDER / f"{name}-{_key(program, train, training)}.safetensors"
    tensors = _stored(file, program)
    if tensors is None:
        learned = ts.PassManager([ts.Finetune(train, loss, training=training)]).run(program).program
        tensors = {key: value.detach().contiguous() for key, value in learned.tensors().items()}
        _store(file, tensors)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key in tensors:
                value.copy_(tensors[key])
    program = ts.trace(model, (example,), dynamic={argument: {0: "batch"}})
    return Trained(name, model, program, train, test, loss, metric, better, training)


def _key(program: ts.Program, train: ts.ShuffledBatches, training: ts.Training) -> str:
    digest = hashlib.sha256(f"{torch.__version__} {train.size} {training}".encode())
    digest.update(str(program).encode())
    for tensor in [*program.tensors().values(), *train.tensors]:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(file: Path, program: ts.Program) -> dict[str, Tensor] | None:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError):
        return None
    expected = {name: tensor.shape for name, tensor in program.tensors().items()}
    return tensors if {name: tensor.shape for name, tensor in tensors.items()} == expected else None


def _store(file: Path, tensors: dict[str, Tensor]) -> None:
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, {"names": json.dumps(sorted(tensors))})
    temporary.replace(file)
