"""A program as it trains: batch norm and dropout in training mode, statistics over all processes, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.distributed.nn.functional import all_reduce

from tersor.ir.placement import move
from tersor.ir.program import Program

from ..processes import world

aten = torch.ops.aten

_TRAINING = 5
"""The place of batch norm's argument that says whether it trains."""


def training_copy(program: Program, freeze_batch_norm: bool, taps: Sequence[str] = ()) -> Program:
    """A copy in training mode that shares the tensors. Frozen batch norms keep to their running statistics.

    taps: names of nodes whose values `run` gives after the outputs.
    """
    copied = tapped(program, taps).train()
    for node in copied.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        if freeze_batch_norm:
            node.update_arg(_TRAINING, False)
        elif world() > 1:
            node.target = synchronized_batch_norm
    copied.changed()
    return copied


def tapped(program: Program, taps: Sequence[str]) -> Program:
    """A copy whose `run` gives the values of these nodes after the outputs."""
    copied = program.copy()
    if taps:
        named = {node.name: node for node in copied.graph.nodes}
        copied.graph.output_node().args = ((*copied.outputs, *(named[name] for name in taps)),)
        copied.changed()
    return copied


def synchronized_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Batch norm over the batches of all processes: what one process computes on all of them together.

    The sums are reduced with gradients, so the backward pass is that of the whole batch as well. torch's own
    SyncBatchNorm needs a GPU; this runs wherever all_reduce does.
    """
    others = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    numbers = x.float()
    counted = torch.full((1,), float(x.numel() / x.shape[1]), device=x.device)
    sums = torch.cat([numbers.sum(others), counted])
    sums = all_reduce(sums)
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    centred = numbers - mean.reshape(shape)
    variance = all_reduce(centred.square().sum(others)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    result: Tensor = centred * torch.rsqrt(variance + eps).reshape(shape)
    if weight is not None:
        result = result * weight.reshape(shape)
    if bias is not None:
        result = result + bias.reshape(shape)
    return result.to(x.dtype)


def statistics(program: Program) -> dict[str, Tensor]:
    """The running means and variances that batch norms update, by name."""
    found: dict[str, Tensor] = {}
    for node in program.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        for argument in node.args[3:5]:
            tensor = program.constant(argument)
            if tensor is not None and isinstance(argument, fx.Node):
                found[str(argument.target)] = tensor
    return found


def owned(program: Program, device: torch.device) -> Program:
    """A copy with tensors of its own on a device; operators that make tensors make them there."""
    copied = program.copy()
    copied.set_tensors({name: tensor.detach().clone() for name, tensor in _unique(copied).items()})
    move(copied, device)
    return copied


def _unique(program: Program) -> dict[str, Any]:
    seen: set[int] = set()
    unique = {}
    for name, tensor in program.tensors().items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique
