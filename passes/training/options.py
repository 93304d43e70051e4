"""How a run trains: every choice of the loop as one frozen dataclass."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tersor.ir.errors import TrainingError


class Optimizer(enum.Enum):
    """The update rule. SGD: momentum 0.9 and Nesterov's step. ADAM, ADAMW: with torch's defaults."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Schedule(enum.Enum):
    """How the learning rate moves, after the warm-up, from its peak over the rest of the steps.

    CONSTANT: it stays. LINEAR: straight to `final` times the peak. COSINE: there along half a cosine
    (arXiv:1608.03983). STEP: to a tenth at one half and at three quarters of the steps.
    """

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    STEP = "step"


class Precision(enum.Enum):
    """The type that operators compute in while training; parameters stay float32.

    FLOAT32: as they are. BFLOAT16: wide range, no scaling of the loss. FLOAT16: on a GPU alone, with gradients scaled.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Better(enum.Enum):
    """Which way a metric is to go. HIGHER: as accuracy. LOWER: as bits per byte, or an error."""

    HIGHER = "higher"
    LOWER = "lower"


OptimizerFactory = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]
"""An optimizer of one's own: from parameter groups, each with `params`, `lr` and `weight_decay`."""


@dataclass(frozen=True)
class Training:
    """How long, how fast and how carefully to train.

    epochs: how often the batches are read; steps: how many updates, which wins where both are given.
    optimizer: a rule, or a function from parameter groups to a torch optimizer.
    learning_rate: the peak; schedule: see `Schedule`; warmup: the share of the steps that lead up to it; final: what is
        left at the end, as a share of the peak, under LINEAR and COSINE.
    weight_decay: for tensors of two dimensions and more; biases and norms have none.
    clip_norm: the largest norm of all gradients together.
    accumulate: how many batches make one step.
    precision: see `Precision`; float16 needs a GPU.
    average: decay of the running mean of the weights (EMA), such as 0.999, that is evaluated and kept instead of them.
    evaluate_every: steps between evaluations; None means once an epoch.
    patience: stop after so many evaluations without a better one.
    keep_best: end with the state of the best evaluation, and not of the last, where there is validation data.
    seed: of everything random: dropout, and the order of batches that is drawn from torch, numpy or random.
    checkpoint: a folder; a run that is started again there goes on from its last checkpoint, to the same bits.
    checkpoint_every: steps between checkpoints; None means once an epoch.
    own_batches: under torchrun, each process was given batches of its own; else all have the same and share them out.
    shard: under torchrun, divide parameters, gradients and the optimizer's memory among the processes (FSDP2).
    progress: draw a bar; None draws one where stderr is a terminal and nothing else does already.
    """

    epochs: int = 3
    steps: int | None = None
    optimizer: Optimizer | OptimizerFactory = Optimizer.ADAMW
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.COSINE
    warmup: float = 0.0
    final: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    precision: Precision = Precision.FLOAT32
    average: float | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    keep_best: bool = True
    seed: int = 0
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None
    own_batches: bool = False
    shard: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        whole = ("epochs", "steps", "accumulate", "evaluate_every", "patience", "checkpoint_every")
        for name in whole:
            self._require(name, "a whole number >= 1", lambda value: isinstance(value, int) and value >= 1)
        self._require("learning_rate", "a number > 0", lambda value: value > 0)
        self._require("weight_decay", "a number >= 0", lambda value: value >= 0)
        self._require("clip_norm", "a number > 0", lambda value: value > 0)
        self._require("warmup", "a share in [0, 1)", lambda value: 0 <= value < 1)
        self._require("final", "a share in [0, 1]", lambda value: 0 <= value <= 1)
        self._require("average", "a decay in (0, 1)", lambda value: 0 < value < 1)

    def _require(self, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise TrainingError(f"{name} is out of range", expected=expected, found=value)

    def build(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over parameter groups."""
        if not isinstance(self.optimizer, Optimizer):
            return self.optimizer(groups)
        return _BUILD[self.optimizer](groups)


_BUILD: dict[Optimizer, OptimizerFactory] = {
    Optimizer.SGD: lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True),
    Optimizer.ADAM: lambda groups: torch.optim.Adam(groups),
    Optimizer.ADAMW: lambda groups: torch.optim.AdamW(groups),
}
