"""A few tensors and a loss: what rounding, scales or a projection are learned with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import TrainingError

from .loop import Outcome, fit
from .options import Training
from .task import Group, Task


def optimize(
    tensors: Mapping[str, nn.Parameter] | Iterable[Group],
    loss: Callable[[Any, float], Tensor],
    batches: Iterable[Any],
    options: Training,
    *,
    constrain: Callable[[], None] | None = None,
    what: str = "optimize",
    move: Callable[[torch.device], None] | None = None,
) -> Outcome:
    """Train tensors in place so that a loss gets small: rounding decisions, step sizes, a projection.

    tensors: parameters by name, or groups of them with speeds of their own.
    loss: called with a batch and the share of the run that is done, from 0 to 1, for what is annealed.
    batches: whatever the loss takes, such as cached inputs and targets (`ShuffledBatches`).
    move: called with the device that is trained on, to bring what the loss reads there.
    constrain: called after each update, without gradients, to put tensors back where they have to be.

    Everything else is as in `fit`. The tensors end on the device that they were on.
    """
    groups = [Group(tensors)] if isinstance(tensors, Mapping) else list(tensors)
    homes = [(parameter, parameter.device) for group in groups for parameter in group.parameters.values()]
    outcome = fit(_Tensors(groups, loss, constrain, what, move), batches, options)
    for parameter, home in homes:
        parameter.data = parameter.data.to(home)
    return outcome


class _Tensors(Task):
    def __init__(
        self,
        groups: list[Group],
        loss: Callable[[Any, float], Tensor],
        constrain: Callable[[], None] | None,
        what: str,
        move: Callable[[torch.device], None] | None,
    ) -> None:
        self.given, self.function, self.after, self.what, self.move = groups, loss, constrain, what, move

    def groups(self) -> list[Group]:
        return self.given

    def loss(self, batch: Any, share: float) -> Tensor:
        return self.function(batch, share)

    def state(self) -> dict[str, Tensor]:
        return {name: parameter for group in self.given for name, parameter in group.parameters.items()}

    def constrain(self) -> None:
        if self.after is not None:
            self.after()

    def explain(self, batch: Any, share: float) -> TrainingError | None:
        for name, tensor in self.state().items():
            if not bool(torch.isfinite(tensor).all()):
                return TrainingError("a tensor is not finite", found=name, hint="a lower learning_rate")
        return None

    def to(self, device: torch.device) -> None:
        for parameter in self.state().values():
            parameter.data = parameter.data.to(device)
        if self.move is not None:
            self.move(device)
