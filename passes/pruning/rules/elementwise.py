"""Operators that work value by value: operands are aligned from the last dimension, size 1 stretches."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, OBSERVE
from tersor.ir.shapes import KEY

from ...arguments import argument
from ..flow import Axes, Flow, Kind, Rule

aten = torch.ops.aten


def elementwise(flow: Flow, node: fx.Node) -> Axes:
    """Everything that broadcasts."""
    operands = [flow.of(value) for value in node.all_input_nodes if isinstance(value.meta.get(KEY), torch.Tensor)]
    return flow.broadcast(operands)


def addition(flow: Flow, node: fx.Node) -> Axes:
    """An addition of two computed values of one rank is where a residual stream is tied."""
    result = elementwise(flow, node)
    computed = [value for value in node.args[:2] if isinstance(value, fx.Node) and value.op == "call_function"]
    ranks = [len(flow.of(value)) for value in computed]
    if ranks == [len(result)] * 2 and len(result) > 1:
        flow.mark(result[1] if len(result) == 4 else result[-1], Kind.RESIDUAL)
    return result


def like(flow: Flow, node: fx.Node) -> Axes:
    """A new tensor of the first operand's sizes, whatever its values."""
    return flow.of(node.args[0])


def fake_quantize(flow: Flow, node: fx.Node) -> Axes:
    """Per-channel grids follow their axis."""
    axes = flow.of(node.args[0])
    axis: Any = node.args[3]
    for grid in (flow.of(node.args[1]), flow.of(node.args[2])):
        if axis is not None and grid:
            flow.same(grid[0], axes[axis])
    return axes


def prelu(flow: Flow, node: fx.Node) -> Axes:
    """One slope, or one a channel (dimension 1)."""
    axes, (slope,) = flow.of(argument(node, "self")), flow.of(argument(node, "weight"))
    if slope.size != 1:
        flow.same(slope, axes[1] if len(axes) > 1 else axes[0])
    return axes


_LIKE = (
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
    aten.rand_like.default, aten.randn_like.default, aten.type_as.default,
)  # fmt: skip
_PLAIN = (
    "dropout", "feature_dropout", "alpha_dropout", "clone", "alias", "detach", "contiguous", "_to_copy",
    "lift_fresh_copy", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "relu6", "selu", "celu", "elu",
    "mish", "softplus", "log_sigmoid", "rrelu_with_noise", "softshrink", "hardshrink", "threshold", "leaky_relu",
    "relu", "square", "true_divide", "floor_divide", "where", "masked_fill", "bernoulli", "nan_to_num", "xlogy",
    "maximum", "minimum", "fmod", "remainder", "__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or",
    "bitwise_xor", "bitwise_not", "logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf",
    "isfinite", "addcmul", "addcdiv", "lerp", "clamp", "clamp_min", "clamp_max", "clip", "float_power", "_conj",
    "positive", "rsub", "subtract", "multiply", "divide", "negative", "absolute", "greater", "greater_equal",
    "less", "less_equal", "not_equal", "data",
)  # fmt: skip


def _overloads(name: str) -> list[Any]:
    packet = getattr(aten, name, None)
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]


TABLE: dict[Any, Rule] = {
    **{overload: elementwise for name in _PLAIN for overload in _overloads(name)},
    **dict.fromkeys(_LIKE, like),
    aten.add.Tensor: addition,
    aten.prelu.default: prelu,
    OBSERVE: elementwise,
    FAKE_QUANTIZE: fake_quantize,
    FAKE_QUANTIZE_BIAS: elementwise,
}
