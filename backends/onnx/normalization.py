"""Rules for normalization and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .builder import Builder, Value
from .registry import Refusal, rule

aten = torch.ops.aten


@rule(aten.batch_norm.default)
def batch_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> str:
    if training or mean is None or variance is None:
        raise Refusal("batch norm computes statistics from its batch, as in training", "program.eval()")
    scale, shift = _filled(b, x, weight, 1, mean.shape), _filled(b, x, bias, 0, mean.shape)
    return b.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=float(eps))


def _filled(b: Builder, x: Value, given: Value | None, fill: float, shape: Sequence[int]) -> str:
    """A parameter that ONNX wants to be there: as given, or of one value."""
    return b.constant(torch.full(tuple(shape), fill, dtype=x.dtype)) if given is None else given


@rule(aten.layer_norm.default)
def layer_norm(b: Builder, x: Value, shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float) -> str:
    return b.op("LayerNormalization", x, _filled(b, x, weight, 1, shape), bias, axis=-len(shape), epsilon=float(eps))


@rule(aten.rms_norm.default)
def rms_norm(b: Builder, x: Value, shape: Sequence[int], weight: Value | None, eps: float | None) -> str:
    """RMSNormalization came with opset 23; before it, the form that ONNX Runtime fuses, with its square as Pow."""
    epsilon = torch.finfo(x.dtype).eps if eps is None else eps
    scale = _filled(b, x, weight, 1, shape)
    if b.options.opset >= 23:
        return b.op("RMSNormalization", x, scale, axis=-len(shape), epsilon=float(epsilon))
    axes = b.ints(*range(-len(shape), 0))
    power = b.op("ReduceMean", b.op("Pow", x, b.number(2, x.dtype)), axes, keepdims=1)
    result = b.op("Div", x, b.op("Sqrt", b.op("Add", power, b.number(epsilon, x.dtype))))
    return b.op("Mul", result, scale)


@rule(aten.group_norm.default)
def group_norm(b: Builder, x: Value, groups: int, weight: Value | None, bias: Value | None, eps: float) -> str:
    """Instance norm of [N, groups, everything else], then scale and shift by channel."""
    ones, zeros = (b.constant(torch.full((groups,), fill, dtype=x.dtype)) for fill in (1.0, 0.0))
    grouped = b.op("Reshape", x, b.ints(0, groups, -1))
    normal = b.op("InstanceNormalization", grouped, ones, zeros, epsilon=float(eps))
    result = b.op("Reshape", normal, b.shape(x))
    for operator, parameter in (("Mul", weight), ("Add", bias)):
        if parameter is not None:
            result = b.op(operator, result, b.op("Reshape", parameter, b.ints(-1, *[1] * (x.rank - 2))))
    return result


@rule(aten.instance_norm.default)
def instance_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> str:
    if not use_input_stats:
        return batch_norm(b, x, weight, bias, mean, variance, False, momentum, eps)
    scale, shift = (_filled(b, x, given, fill, x.shape[1:2]) for given, fill in ((weight, 1), (bias, 0)))
    return b.op("InstanceNormalization", x, scale, shift, epsilon=float(eps))


@rule(aten.softmax.int, aten._softmax.default)
def softmax(b: Builder, x: Value, dim: int) -> str:
    return b.op("Softmax", b.cast(x, b.result.dtype), axis=dim)


@rule(aten._safe_softmax.default)
def safe_softmax(b: Builder, x: Value, dim: int) -> str:
    return softmax_or_zeros(b, b.cast(x, b.result.dtype), b.result.dtype, dim)


def softmax_or_zeros(b: Builder, scores: str, dtype: torch.dtype, dim: int = -1) -> str:
    """Zeros for a row of minus infinity, for which ONNX's softmax gives NaN.

    The row is asked and not the result, so that a NaN of the model's own shows, as it does in ATen.
    """
    largest = b.op("ReduceMax", scores, b.ints(dim), keepdims=1)
    hidden = b.op("Equal", largest, b.number(-math.inf, dtype))
    return b.op("Where", hidden, b.number(0, dtype), b.op("Softmax", scores, axis=dim))


@rule(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(b: Builder, x: Value, dim: int) -> str:
    return b.op("LogSoftmax", b.cast(x, b.result.dtype), axis=dim)
