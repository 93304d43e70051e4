"""Self-distillation over generations: each is taught by the one before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from tersor.ir.errors import TrainingError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .distill import Distillation, Distiller
from .finetune import for_epochs, metric_name
from .loop import Outcome, fit
from .options import Better, Training
from .program_task import Loss, Metric, ProgramTask, Settings
from .reinitialize import reinitialized


@dataclass(frozen=True)
class BornAgain(Pass):
    """Train a fresh copy to do as the program does, then another as that one, and so on (arXiv:1805.04770).

    The architecture stays. With validation data the best generation is the result, the program given among them; else
    the last one.

    generations: how many students are trained, one after another.
    batches, loss, epochs, training, metric, validation, better: see `Finetune`; a training has to be long enough to
        begin from nothing.
    distillation: what is learned; its teacher is set here.

    Raises TrainingError where data is missing or `distillation` names a teacher.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    promise: ClassVar[Promise] = Promise.TRAINED

    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    generations: int = 1
    distillation: Distillation = field(default_factory=Distillation)
    epochs: int | None = None
    training: Training = field(default_factory=Training)
    metric: Metric | None = None
    validation: Iterable[Any] | None = None
    better: Better = Better.HIGHER

    def __post_init__(self) -> None:
        if self.generations < 1:
            raise TrainingError("generations is out of range", expected="a number >= 1", found=self.generations)
        if self.distillation.teacher is not None:
            raise TrainingError("the teacher is the generation before", hint="Distill(...) for a teacher of your own")

    def run(self, program: Program) -> PassResult:
        """Train every generation."""
        if self.batches is None:
            raise TrainingError("training data is missing", hint="BornAgain(batches, loss)")
        teacher, best, notes = program, program, list[str]()
        score = self._score(program)
        for generation in range(1, self.generations + 1):
            teacher, outcome = self._generation(teacher, generation)
            notes += [f"generation {generation}: {note}" for note in outcome.notes(metric_name(self.metric))]
            if score is None or outcome.metric is None or self._is_better(outcome.metric, score):
                best, score = teacher, outcome.metric
        return PassResult(best, best is not program, tuple(notes))

    def _generation(self, teacher: Program, generation: int) -> tuple[Program, Outcome]:
        options = for_epochs(self.training, self.epochs)
        seed = options.seed + generation
        folder = None if options.checkpoint is None else Path(options.checkpoint) / f"generation-{generation}"
        options = dataclasses.replace(options, seed=seed, checkpoint=folder)
        taught = dataclasses.replace(self.distillation, teacher=teacher)
        student = reinitialized(teacher, seed)
        task = ProgramTask(student, self._settings(), Distiller(taught, student), options)
        task.what = f"generation {generation}"
        outcome = fit(task, self.batches or (), options, self.better)
        return task.result(), outcome

    def _settings(self) -> Settings:
        return Settings(self.loss, self.metric, self.validation)

    def _score(self, program: Program) -> float | None:
        with torch.no_grad():
            return ProgramTask(program, self._settings()).evaluate()

    def _is_better(self, metric: float, score: float) -> bool:
        return metric > score if self.better is Better.HIGHER else metric < score
