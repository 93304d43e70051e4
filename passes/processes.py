"""One process or many: which one this is, and sums over all of them.

Without torch.distributed, or before it is started, there is one process, and a sum is the value itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def world() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if _connected() else 1


def rank() -> int:
    """The number of this process."""
    return torch.distributed.get_rank() if _connected() else 0


def _connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def summed(values: Tensor) -> Tensor:
    """The sum over all processes; the values themselves where there is one."""
    if world() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


def extremes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest over all processes."""
    if world() == 1:
        return low, high
    low, high = low.clone(), high.clone()
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    return low, high


def shared_out(items: Iterable[T]) -> Iterator[T]:
    """This process's part of what all of them iterate over alike: every `world()`-th item."""
    return islice(items, rank(), None, world())
