"""One process or many: which one this is, and sums over all of them.

Without torch.distributed, or before it is started, there is one process, and a sum is the value itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def join_processes() -> None:
    """Join the processes that torchrun started with this one; nothing happens where it did not, or they are joined.

    Training does so by itself. Calibration and pruning share out their data where it was done before.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    if launched and torch.distributed.is_available() and not torch.distributed.is_initialized():
        if not on_cpu():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("gloo" if on_cpu() else "nccl")


def on_cpu() -> bool:
    """Whether work is done on the CPU: there is no GPU, or ACCELERATE_USE_CPU says so."""
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on")
    return wanted or not torch.cuda.is_available()


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
    return _reduced(values, "SUM")


def least(values: Tensor) -> Tensor:
    """The least over all processes, value by value."""
    return _reduced(values, "MIN")


def of_the_first(values: Tensor) -> Tensor:
    """What process 0 has, in all of them."""
    if world() == 1:
        return values
    agreed = _carried(values)
    torch.distributed.broadcast(agreed, 0)
    return agreed.to(values.device)


def _reduced(values: Tensor, operation: str) -> Tensor:
    if world() == 1:
        return values
    total = _carried(values)
    torch.distributed.all_reduce(total, getattr(torch.distributed.ReduceOp, operation))
    return total.to(values.device)


def _carried(values: Tensor) -> Tensor:
    """A copy where the processes can exchange it: NCCL takes tensors of a GPU only."""
    device = "cuda" if torch.distributed.get_backend() == "nccl" else values.device
    return values.detach().to(device, copy=True)


def shared_out(items: Iterable[T]) -> Iterator[T]:
    """This process's part of what all of them iterate over alike: every `world()`-th item."""
    return islice(items, rank(), None, world())
