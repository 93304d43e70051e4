"""tersor's own operators: schema, reference implementation, shape function and gradient of each.

They are registered with torch.library, so a program that holds them runs, traces and trains like any other. The
arithmetic here is the definition: every backend computes what these functions compute.

fake_quantize   y = (clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale
                The division is by the scale, as in ONNX QuantizeLinear. (ATen's own operator multiplies by the
                reciprocal, which lands on the other side of a tie for some inputs.)
fake_quantize_bias   the same on int32 with the scale of an accumulator, input_scale * weight_scale
observe         the identity; it marks a value whose range calibration has yet to find

Gradients are the straight-through estimator for values (Bengio et al. 2013, arXiv:1308.3432), masked where the value
was clamped, and the learned-step-size gradient for scales (Esser et al. 2019, arXiv:1902.08153) without its
per-tensor scaling, which belongs to the optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BIAS_LIMIT = 1 << 30
"""Biases stay within this, so that an int32 accumulator has room for the products as well."""

_LIBRARY = torch.library.Library("tersor", "DEF")
_LIBRARY.define(
    "fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int quant_min, int quant_max) -> Tensor"
)
_LIBRARY.define("fake_quantize_bias(Tensor bias, Tensor input_scale, Tensor weight_scale) -> Tensor")
_LIBRARY.define("observe(Tensor x, str group, int? axis, int quant_min, int quant_max, bool symmetric) -> Tensor")


def along(values: Tensor, axis: int | None, rank: int) -> Tensor:
    """Shape a vector of per-channel values so that it broadcasts along `axis` of a tensor of that rank."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * rank
    shape[axis] = values.shape[0]
    return values.reshape(shape)


def quantize_to_grid(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    """The stored values of `x`, clamped, still as float32: clamp(round_half_even(x / scale) + zero_point)."""
    # On the device of the values: CUDA divides by a number on the CPU as a product with its reciprocal.
    steps = torch.div(x.float(), along(scale.to(x.device), axis, x.dim()))
    return steps.round_().add_(along(zero_point, axis, x.dim())).clamp_(quant_min, quant_max)


def _fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    steps = quantize_to_grid(x, scale, zero_point, axis, quant_min, quant_max)
    return steps.sub_(along(zero_point, axis, x.dim())).mul_(along(scale, axis, x.dim())).to(x.dtype)


def _fake_quantize_shape(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    return torch.empty_like(x)


def straight_through(
    grad: Tensor, ratio: Tensor, zero: Tensor, quant_min: int, quant_max: int, *, of_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient of what was quantized, and each value's part in that of its scale: float32, None unless `of_scale`.

    ratio: x / scale. zero: the zero points, as ratio or broadcast to it.
    """
    steps = torch.round(ratio)
    low, high = steps + zero < quant_min, steps + zero > quant_max
    inside = ~(low | high)
    if not of_scale:
        return grad * inside, None
    slope = torch.where(inside, steps - ratio, torch.where(low, quant_min - zero, quant_max - zero))
    return grad * inside, grad.float() * slope


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid = axis, quant_min, quant_max
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.tersor.fake_quantize(x, scale, zero_point, axis, quant_min, quant_max)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale, zero_point = ctx.saved_tensors
        axis, quant_min, quant_max = ctx.grid
        zero = along(zero_point, axis, x.dim())
        ratio = x.float() / along(scale, axis, x.dim())
        grad_x, parts = straight_through(grad, ratio, zero, quant_min, quant_max, of_scale=ctx.needs_input_grad[1])
        grad_scale = None
        if parts is not None:
            others = [d for d in range(x.dim()) if axis is not None and d != axis]
            grad_scale = parts.sum(others) if axis is not None and scale.dim() else parts.sum()
            grad_scale = grad_scale.reshape(scale.shape).to(scale.dtype)
        return grad_x, grad_scale, None, None, None, None


def _fake_quantize_autograd(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int
) -> Any:
    return _FakeQuantize.apply(x, scale, zero_point, axis, quant_min, quant_max)  # type: ignore[no-untyped-call]  # torch


def bias_scale(input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The scale of an accumulator, float32(input_scale * weight_scale)."""
    return (input_scale * weight_scale).float()


def quantize_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The int32 values that stand for `bias` on the grid of its accumulator, int32[out_channels].

    The division is done in float64, which holds every int32 exactly; +-2**30 bounds the result.
    """
    steps = torch.round(bias.double() / bias_scale(input_scale, weight_scale).double())
    return torch.clamp(steps, -BIAS_LIMIT, BIAS_LIMIT).to(torch.int32)


def _fake_quantize_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    steps = quantize_bias(bias, input_scale, weight_scale)
    return (steps.double() * bias_scale(input_scale, weight_scale).double()).to(bias.dtype)


class _FakeQuantizeBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.tersor.fake_quantize_bias(bias, input_scale, weight_scale)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


def _fake_quantize_bias_autograd(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Any:
    return _FakeQuantizeBias.apply(bias, input_scale, weight_scale)  # type: ignore[no-untyped-call]  # torch


def _observe(x: Tensor, group: str, axis: int | None, quant_min: int, quant_max: int, symmetric: bool) -> Tensor:
    return x.clone()


def _register() -> None:
    for name, reference in (
        ("fake_quantize", _fake_quantize),
        ("fake_quantize_bias", _fake_quantize_bias),
    ):
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    _LIBRARY.impl("observe", _observe, "CompositeImplicitAutograd")
    _LIBRARY.impl("fake_quantize", _fake_quantize_autograd, "Autograd")
    _LIBRARY.impl("fake_quantize_bias", _fake_quantize_bias_autograd, "Autograd")
    torch.library.register_fake("tersor::fake_quantize", _fake_quantize_shape, lib=_LIBRARY)
    torch.library.register_fake("tersor::fake_quantize_bias", lambda bias, *_: torch.empty_like(bias), lib=_LIBRARY)


_register()

FAKE_QUANTIZE = torch.ops.tersor.fake_quantize.default
FAKE_QUANTIZE_BIAS = torch.ops.tersor.fake_quantize_bias.default
OBSERVE = torch.ops.tersor.observe.default

KEEP_SHAPE = frozenset({FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, OBSERVE})
"""Operators whose result has the type of their first input."""
