"""A program that trains: its loss on batches, its metric, its zeros."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import TrainingError
from tersor.ir.program import Program

from .batches import ModelInputs, moved, require_again, rows, split
from .diagnosis import first_bad_tensor
from .masks import apply_masks, sparsity_masks
from .processes import rank, summed, world
from .task import Group, Task
from .training_graph import device_of, move, owned, place, statistics, training_copy

Loss = Callable[..., Tensor]
"""`loss(outputs, *targets)`: the mean over the batch, as a tensor of one value."""

Metric = Callable[..., Any]
"""`metric(outputs, *targets)`: the mean over the batch, a number."""


class ProgramTask(Task):
    """Trains the parameters of a program.

    The program given stays as it is; `program` is a copy with tensors of its own, in inference mode, and the one that
    trains shares them. Parameters that are promised to be sparse keep their zeros.

    validation, metric: what `evaluate` computes; the mean over the batches, weighted by their rows.
    freeze: regular expressions of parameter names that stay as they are.
    freeze_batch_norm: keep to the running statistics, and do not update them.
    """

    what = "fine-tune"

    def __init__(
        self,
        program: Program,
        loss: Loss,
        *,
        metric: Metric | None = None,
        validation: Iterable[Any] | None = None,
        freeze: tuple[str, ...] = (),
        freeze_batch_norm: bool = False,
    ) -> None:
        if metric is not None and validation is None:
            raise TrainingError("a metric needs validation data", hint="validation=batches")
        if validation is not None:
            require_again(validation, "validation data")
        self.home = device_of(program)
        self.device = self.home
        self.loss_function, self.metric, self.validation = loss, metric, validation
        self.freeze, self.freeze_batch_norm = freeze, freeze_batch_norm
        self.program = owned(program, self.device).eval()
        self._refuse_unmatched()
        self.rebuild()

    def rebuild(self) -> None:
        """Make what trains anew, after the graph or the tensors of `program` were changed."""
        self.training = training_copy(self.program, self.freeze_batch_norm)
        self.masks = sparsity_masks(self.program)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained: every parameter that has a gradient and is not frozen."""
        chosen = self.program.parameters().items()
        return {name: p for name, p in chosen if p.requires_grad and not self._is_frozen(name)}

    def groups(self) -> list[Group]:
        return [Group(self.parameters())]

    def loss(self, batch: Any, share: float) -> Tensor:
        parts = split(self.training, batch)
        outputs = self.training.unflatten(self.training.run(parts.inputs(self.training)))
        return self.loss_function(outputs, *parts.targets, **parts.named_targets)

    def state(self) -> dict[str, Tensor]:
        return {**self.parameters(), **statistics(self.program)}

    def constrain(self) -> None:
        if self.masks:
            apply_masks(self.program.tensors(), self.masks)

    def evaluate(self) -> float | None:
        if self.metric is None or self.validation is None:
            return None
        total = torch.zeros(2, dtype=torch.float64)
        for batch in islice(self.validation, rank(), None, world()):
            batch = moved(batch, self.device)
            parts = split(self.program, batch)
            outputs = self.program.unflatten(self.program.run(parts.inputs(self.program)))
            value = float(self.metric(outputs, *parts.targets, **parts.named_targets))
            total += torch.tensor([value * rows(batch), rows(batch)], dtype=torch.float64)
        score, count = summed(total).tolist()
        if not count:
            raise TrainingError("validation data is empty", expected="at least one batch", found="none")
        return float(score / count)

    def explain(self, batch: Any, share: float) -> TrainingError | None:
        return first_bad_tensor(self.training, batch, self.parameters())

    def to(self, device: torch.device) -> None:
        self.device = device
        move(self.program, device)
        self.rebuild()

    def result(self) -> Program:
        """The trained program, where the program given was."""
        move(self.program, self.home)
        place(self.program, self.home)
        return self.program

    def inputs(self, batches: Iterable[Any], count: int | None = None) -> ModelInputs:
        """The part of training batches that the program is called with."""
        return ModelInputs(self.program, batches, count)

    def _is_frozen(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.freeze)

    def _refuse_unmatched(self) -> None:
        names = self.program.parameters()
        for pattern in self.freeze:
            if not any(re.fullmatch(pattern, name) for name in names):
                hint = f"parameters are {', '.join(list(names)[:8])}, ..."
                raise TrainingError(f"freeze={pattern!r} matches no parameter", hint=hint)
