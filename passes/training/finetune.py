"""Fine-tuning: recover what pruning, sparsity or quantization cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tersor.ir.errors import TrainingError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .events import At, require_same_stage
from .loop import fit
from .options import Better, Training
from .program_task import Loss, Metric, ProgramTask, Settings


@dataclass(frozen=True)
class Finetune(Pass):
    """Train every parameter on labelled batches; zeros that the program promises stay zero.

    batches: read again each epoch. A batch is `(inputs ..., targets ...)`, or a dict of both by name.
    loss: `loss(outputs, *targets)`, the mean over the batch, such as torch's `cross_entropy`.
    epochs: a short way to say `training=Training(epochs=...)`.
    training: how long and how fast (see `Training`).
    metric: `metric(outputs, *targets)` on `validation`, batches of the same form; `better`: which way it is to go.
    freeze: regular expressions of parameter names that are not trained.
    freeze_batch_norm: the share of the run from which batch norms keep to their running statistics; 0 for all of it.
    events: other passes in the middle of the run, such as pruning in steps (see `At`).

    Raises TrainingError where data or loss is missing or does not fit, or the loss stops being finite.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.TRAINED

    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    epochs: int | None = None
    training: Training = field(default_factory=Training)
    metric: Metric | None = None
    validation: Iterable[Any] | None = None
    better: Better = Better.HIGHER
    freeze: tuple[str, ...] = ()
    freeze_batch_norm: float = 1.0
    events: tuple[At, ...] = ()

    def __post_init__(self) -> None:
        require_same_stage(self.events)

    def run(self, program: Program) -> PassResult:
        """Train, and return the program with its new tensors."""
        if self.batches is None or self.loss is None:
            missing = "training data" if self.batches is None else "a loss"
            raise TrainingError(f"{missing} is missing", hint="Finetune(batches, loss)")
        settings = Settings(self.loss, self.metric, self.validation, self.freeze, self.freeze_batch_norm, self.events)
        options = for_epochs(self.training, self.epochs)
        task = ProgramTask(program, settings, options=options)
        outcome = fit(task, self.batches, options, self.better)
        return PassResult(task.result(), True, (*task.agenda.notes, *outcome.notes(metric_name(self.metric))))


def for_epochs(training: Training, epochs: int | None) -> Training:
    """The options, with so many epochs where that is given."""
    return training if epochs is None else dataclasses.replace(training, epochs=epochs, steps=None)


def metric_name(metric: Metric | None) -> str:
    """What a report calls it."""
    name = getattr(metric, "__name__", "metric")
    return "metric" if name == "<lambda>" else str(name)
