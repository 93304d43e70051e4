"""Rules for activations that PyTorch has as one operator."""

from __future__ import annotations

import torch

from ..call import Call, shortest
from ..registry import rule
from ..values import Value

aten = torch.ops.aten

_SIXTH = shortest(1 / 6, torch.float32)
_SELU_ALPHA = shortest(1.6732632423543772, torch.float32)
_SELU_GAMMA = shortest(1.0507009873554805, torch.float32)


@rule("LeakyRelu")
def leaky_relu(op: Call) -> Value:
    return op.call(aten.leaky_relu.default, op.input(0), op.attr_float("alpha", 0.01))


@rule("Elu")
def elu(op: Call) -> Value:
    return op.call(aten.elu.default, op.input(0), op.attr_float("alpha", 1.0))


@rule("Selu")
def selu(op: Call) -> Value:
    """With other constants than the usual ones it is a scaled ELU."""
    alpha, gamma = op.attr_float("alpha", _SELU_ALPHA), op.attr_float("gamma", _SELU_GAMMA)
    if (alpha, gamma) == (_SELU_ALPHA, _SELU_GAMMA):
        return op.call(aten.selu.default, op.input(0))
    return op.call(aten.elu.default, op.input(0), alpha, gamma)


@rule("Celu")
def celu(op: Call) -> Value:
    return op.call(aten.celu.default, op.input(0), op.attr_float("alpha", 1.0))


@rule("ThresholdedRelu")
def thresholded_relu(op: Call) -> Value:
    return op.call(aten.threshold.default, op.input(0), op.attr_float("alpha", 1.0), 0.0)


@rule("HardSigmoid")
def hard_sigmoid(op: Call) -> Value:
    """PyTorch's has slope 1/6; any other is computed step by step."""
    x, alpha, beta = op.input(0), op.attr_float("alpha", 0.2), op.attr_float("beta", 0.5)
    if (alpha, beta) == (_SIXTH, 0.5):
        return op.call(aten.hardsigmoid.default, x)
    line = op.call(aten.add.Tensor, op.call(aten.mul.Tensor, x, alpha), beta)
    return op.call(aten.clamp.default, line, 0.0, 1.0)


@rule("HardSwish")
def hard_swish(op: Call) -> Value:
    return op.call(aten.hardswish.default, op.input(0))


@rule("Swish", since=24)
def swish(op: Call) -> Value | None:
    return op.call(aten.silu.default, op.input(0)) if op.attr_float("alpha", 1.0) == 1 else None


@rule("PRelu")
def prelu(op: Call) -> Value:
    """A slope for all elements or for each channel is PyTorch's prelu; any other is a choice by sign."""
    x, slope = op.input(0), op.input(1)
    sizes = op.shape(slope)
    channels = 0 if op.rank(x) < 2 else op.size(x, 1)
    per_channel = len(sizes) == op.rank(x) - 1 and sizes[:1] == [channels] and all(size == 1 for size in sizes[1:])
    if op.dtype(x).is_floating_point and (per_channel or all(size == 1 for size in sizes)):
        if len(sizes) != 1:
            slope = op.call(aten.reshape.default, slope, [-1])
        return op.call(aten.prelu.default, x, slope)
    scaled = op.cast(op.call(aten.mul.Tensor, x, slope), op.dtype(x))
    return op.call(aten.where.self, op.call(aten.ge.Scalar, x, 0), x, scaled)


@rule("Hardmax", since=13)
def hardmax(op: Call) -> Value:
    return _first_largest(op, op.input(0), op.attr_int("axis", -1))


@rule("Hardmax", until=12)
def hardmax_of_matrix(op: Call) -> Value:
    """Over all axes from `axis` on, as one."""
    x = op.input(0)
    axis = op.axis(op.attr_int("axis", 1), op.rank(x))
    flat = _first_largest(op, op.call(aten.flatten.using_ints, x, axis), -1)
    return op.call(aten.reshape.default, flat, op.shape(x))


def _first_largest(op: Call, x: Value, axis: int) -> Value:
    place = op.call(aten.argmax.default, x, axis, True)
    return op.call(aten.scatter.value, op.call(aten.zeros_like.default, x), axis, place, 1)
