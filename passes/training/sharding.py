"""Parameters, gradients and the optimizer's memory divided among the processes: FSDP2 on a program as one unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import TrainingError

from ..processes import world
from .averaging import write
from .options import Precision, Training
from .task import Task


def check_sharding(task: Task, options: Training) -> None:
    """Raises TrainingError for what needs whole tensors at every step."""
    reasons = {
        task.whole_tensors() or "": task.whole_tensors() is not None,
        "the running mean of the weights (average)": options.average is not None,
        "checkpoints": options.checkpoint is not None,
        "a precision of 16 bits": options.precision is not Precision.FLOAT32,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        hint = "train without shard: torchrun then keeps whole tensors in every process (DDP)"
        raise TrainingError(f"a sharded run has no place for {found[0]}", hint=hint)


def shard(step: nn.Module, device: torch.device) -> None:
    """Let each process hold its part of every parameter of a module, and gather them while it runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(step, mesh=init_device_mesh(device.type, (world(),)))


def gather(state: Mapping[str, Tensor], names: Sequence[str], sharded: Sequence[Any]) -> None:
    """Write what the processes hold in parts into whole tensors. All processes have to call it."""
    whole = {name: part.full_tensor().detach() for name, part in zip(names, sharded, strict=True)}
    write({name: state[name] for name in names}, whole)
