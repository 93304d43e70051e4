"""A program with fresh weights, for a student that begins where its teacher once did."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.program import Program

aten = torch.ops.aten

_LAYERS = (
    aten.linear.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
)
"""Operators whose arguments 1 and 2 are a weight and a bias."""

_NORMS = {
    aten.batch_norm.default: (1, 2, 3, 4),
    aten.layer_norm.default: (2, 3, None, None),
    aten.group_norm.default: (2, 3, None, None),
    aten.rms_norm.default: (2, None, None, None),
}
"""Operators that normalize: where weight, bias, running mean and running variance are."""


def reinitialized(program: Program, seed: int) -> Program:
    """A copy whose parameters are drawn anew, as torch's layers draw theirs; zeros that are promised stay.

    Weights and biases of layers are uniform in +-1/sqrt(fan_in), norms begin as the identity, embeddings are normal.
    Other parameters, such as positions, are normal with the deviation that they have.
    """
    copied = program.copy()
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Tensor] = {}
    for node in copied.graph.nodes:
        if node.op == "call_function":
            for name, value in _drawn(copied, node, generator):
                values.setdefault(name, value)
    for name, parameter in copied.parameters().items():
        if name not in values:
            deviation = float(parameter.detach().float().std()) if parameter.numel() > 1 else 0.0
            values[name] = torch.randn(parameter.shape, generator=generator) * deviation
    for name, value in values.items():
        old = copied.tensor(name)
        zeros = (old.detach() != 0) if name in copied.sparsity else 1
        values[name] = (value * zeros).to(old.dtype).to(old.device)
    copied.set_tensors(values)
    return copied


def _drawn(program: Program, node: fx.Node, generator: torch.Generator) -> list[tuple[str, Tensor]]:
    """The new values of what a node reads."""
    if node.target in _LAYERS:
        weight = program.constant(node.args[1])
        if not isinstance(weight, nn.Parameter):
            return []
        bound = 1 / math.sqrt(max(1, weight[0].numel()))
        return [
            (name, (torch.rand(tensor.shape, generator=generator) * 2 - 1) * bound)
            for name, tensor in _read(program, node, (1, 2))
        ]
    if node.target in _NORMS:
        return [
            (name, torch.ones(tensor.shape) if place in (0, 3) else torch.zeros(tensor.shape))
            for place, argument in enumerate(_NORMS[node.target])
            for name, tensor in _read(program, node, (argument,))
        ]
    if node.target is aten.embedding.default:
        return [(name, torch.randn(tensor.shape, generator=generator)) for name, tensor in _read(program, node, (0,))]
    return []


def _read(program: Program, node: fx.Node, places: tuple[int | None, ...]) -> list[tuple[str, Tensor]]:
    """The tensors that a node reads at some of its arguments, with their names."""
    arguments: list[Any] = [node.args[place] for place in places if place is not None and place < len(node.args)]
    found = [(str(argument.target), program.constant(argument)) for argument in arguments if argument is not None]
    return [(name, tensor) for name, tensor in found if tensor is not None]
