"""Rules for activation functions and clamps."""

from __future__ import annotations

from typing import Any

import torch

from .builder import Builder, Value
from .registry import Refusal, rule

aten = torch.ops.aten


@rule(aten.gelu.default)
def gelu(b: Builder, x: Value, *, approximate: str) -> str:
    return b.op("Gelu", x, approximate=approximate)


@rule(aten.silu.default)
def silu(b: Builder, x: Value) -> str:
    return b.op("Mul", x, b.op("Sigmoid", x))


@rule(aten.hardsigmoid.default)
def hardsigmoid(b: Builder, x: Value) -> str:
    return b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@rule(aten.log_sigmoid.default)
def log_sigmoid(b: Builder, x: Value) -> str:
    return b.op("Neg", b.op("Softplus", b.op("Neg", x)))


@rule(aten.threshold.default)
def threshold(b: Builder, x: Value, least: float, value: float) -> str:
    return b.op("Where", b.op("Greater", x, b.number(least, x.dtype)), x, b.number(value, x.dtype))


@rule(aten.leaky_relu.default)
def leaky_relu(b: Builder, x: Value, slope: float) -> str:
    return b.op("LeakyRelu", x, alpha=float(slope))


@rule(aten.prelu.default, aten._prelu_kernel.default)
def prelu(b: Builder, x: Value, slope: Value) -> str:
    if slope.rank == 1 and x.rank > 2:
        return b.op("PRelu", x, b.op("Reshape", slope, b.ints(-1, *[1] * (x.rank - 2))))
    return b.op("PRelu", x, slope)


@rule(aten.elu.default)
def elu(b: Builder, x: Value, alpha: float, scale: float, input_scale: float) -> str:
    if input_scale != 1:
        raise Refusal(f"elu with input_scale {input_scale}", "Decompose('aten.elu')")
    result = b.op("Elu", x, alpha=float(alpha))
    return result if scale == 1 else b.op("Mul", result, b.number(scale, x.dtype))


@rule(aten.selu.default)
def selu(b: Builder, x: Value) -> str:
    return b.op("Selu", x)


@rule(aten.celu.default)
def celu(b: Builder, x: Value, alpha: float) -> str:
    return b.op("Celu", x, alpha=float(alpha))


@rule(aten.softplus.default)
def softplus(b: Builder, x: Value, beta: float, threshold: float) -> str:
    scaled = x if beta == 1 else b.op("Mul", x, b.number(beta, x.dtype))
    smooth = b.op("Softplus", scaled)
    smooth = smooth if beta == 1 else b.op("Div", smooth, b.number(beta, x.dtype))
    return b.op("Where", b.op("Greater", scaled, b.number(threshold, x.dtype)), x, smooth)


@rule(aten.relu6.default)
def relu6(b: Builder, x: Value) -> str:
    return _clip(b, x, 0, 6)


@rule(aten.hardtanh.default, aten.clamp.default)
def clamp(b: Builder, x: Value, low: Any, high: Any) -> str:
    return _clip(b, b.cast(x, b.result.dtype), low, high)


@rule(aten.clamp_min.default)
def clamp_min(b: Builder, x: Value, low: Any) -> str:
    return _clip(b, b.cast(x, b.result.dtype), low, None)


@rule(aten.clamp_max.default)
def clamp_max(b: Builder, x: Value, high: Any) -> str:
    return _clip(b, b.cast(x, b.result.dtype), None, high)


@rule(aten.clamp.Tensor)
def clamp_tensor(b: Builder, x: Value, low: Value | None, high: Value | None) -> str:
    dtype = b.result.dtype
    result: str = b.cast(x, dtype)
    result = result if low is None else b.op("Max", result, b.cast(low, dtype))
    return result if high is None else b.op("Min", result, b.cast(high, dtype))


def _clip(b: Builder, x: str, low: Any, high: Any) -> str:
    bounds = [None if bound is None else b.operand(bound, b.result.dtype) for bound in (low, high)]
    return b.op("Clip", x, *bounds)
