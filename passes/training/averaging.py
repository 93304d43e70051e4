"""The running mean of the weights (Polyak averaging; Izmailov et al. 2018, arXiv:1803.05407, use the plain mean)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """An exponential mean of every float tensor of a state.

    The decay begins small, `(1 + step) / (10 + step)`, so that the first weights do not weigh forever.
    """

    def __init__(self, decay: float, state: Mapping[str, Tensor]) -> None:
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take in the state after `step` updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in state.items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def fit_to(self, state: Mapping[str, Tensor]) -> None:
        """After the program was changed: what is new begins with its value, what is gone is forgotten."""
        kept = {name: old for name, old in self.values.items() if name in state and old.shape == state[name].shape}
        self.values = {name: kept.get(name, tensor.detach().clone()) for name, tensor in state.items()}

    @contextmanager
    def swapped(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the state hold the mean inside the block, and what it held again after it."""
        before = copied(state)
        write(state, self.values)
        try:
            yield
        finally:
            write(state, before)


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state as it is now."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@torch.no_grad()
def write(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into the tensors of a state."""
    for name, tensor in state.items():
        tensor.copy_(values[name])
