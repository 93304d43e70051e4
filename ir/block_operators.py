"""Operators for values that are quantized by parts: weights block by block, activations with scales found at run time.

fake_quantize_blocks    along `axis`, each run of `block` neighbours has a scale and a zero point of its own
                        q = clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max)
                        y = (q - zero_point) * scale, in float32
                        scale float32 and zero_point int32 have the shape of x, but ceil(size / block) along `axis`.
                        This is ONNX's blocked DequantizeLinear (opset 21) and ONNX Runtime's MatMulNBits.
fake_quantize_dynamic   the grid is found in the value itself, when it is computed
                        per tensor, asymmetric: ONNX's DynamicQuantizeLinear, moved from 0..255 to -128..127
                          scale = (max(x, 0) - min(x, 0)) / 255, zero_point = clamp(round_half_even(0 - min / scale))
                          - 128
                        per token: one symmetric scale for each vector along the last dimension, max |x| / 127

Gradients of values are straight-through, masked where the value was clamped (arXiv:1308.3432); of block scales those of
learned step sizes (arXiv:1902.08153). A dynamic grid clamps nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .operators import straight_through

_LIBRARY = torch.library.Library("tersor", "FRAGMENT")
_LIBRARY.define(
    "fake_quantize_blocks(Tensor x, Tensor scale, Tensor zero_point, int axis, int block, int quant_min, int quant_max)"
    " -> Tensor"
)
_LIBRARY.define("fake_quantize_dynamic(Tensor x, bool per_token) -> Tensor")

_TINY = torch.finfo(torch.float32).tiny


def over_blocks(values: Tensor, axis: int, block: int, size: int) -> Tensor:
    """One value a block, repeated for each of the `size` places along `axis`."""
    return values.repeat_interleave(block, axis).narrow(axis, 0, size)


def quantize_blocks(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int, quant_min: int, quant_max: int
) -> Tensor:
    """The stored values of `x`, clamped, still as float32."""
    size = x.shape[axis]
    steps = torch.div(x.float(), over_blocks(scale, axis, block, size))
    return steps.round_().add_(over_blocks(zero_point, axis, block, size)).clamp_(quant_min, quant_max)


def _fake_quantize_blocks(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int, quant_min: int, quant_max: int
) -> Tensor:
    steps = quantize_blocks(x, scale, zero_point, axis, block, quant_min, quant_max)
    size = x.shape[axis]
    steps = steps.sub_(over_blocks(zero_point, axis, block, size)).mul_(over_blocks(scale, axis, block, size))
    return steps.to(x.dtype)


class _FakeQuantizeBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, *grid: int) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid = grid
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.tersor.fake_quantize_blocks(x, scale, zero_point, *grid)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale, zero_point = ctx.saved_tensors
        axis, block, quant_min, quant_max = ctx.grid
        zero = over_blocks(zero_point, axis, block, x.shape[axis])
        ratio = x.float() / over_blocks(scale, axis, block, x.shape[axis])
        grad_x, parts = straight_through(grad, ratio, zero, quant_min, quant_max, of_scale=ctx.needs_input_grad[1])
        grad_scale = None if parts is None else _summed(parts, axis, block, scale).to(scale.dtype)
        return grad_x, grad_scale, None, None, None, None, None


def _summed(values: Tensor, axis: int, block: int, like: Tensor) -> Tensor:
    """The sum over each block."""
    places = torch.arange(values.shape[axis], device=values.device) // block
    return torch.zeros_like(like, dtype=torch.float32).index_add_(axis, places, values)


def _blocks_autograd(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int, quant_min: int, quant_max: int
) -> Any:
    return _FakeQuantizeBlocks.apply(x, scale, zero_point, axis, block, quant_min, quant_max)  # type: ignore[no-untyped-call]  # torch


def dynamic_grid(x: Tensor, per_token: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a value, float32[...] and int32[...], the last size 1 where there is one a token."""
    x = x.float()
    if per_token:
        scale = _divided(x.abs().amax(-1, keepdim=True), 127)
        return torch.where(scale > _TINY, scale, 1.0), torch.zeros_like(scale, dtype=torch.int32)
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = _divided(high - low, 255)
    scale = torch.where(scale > _TINY, scale, 1.0)
    zero = torch.round((0 - low) / scale).clamp(0, 255) - 128
    return scale, zero.to(torch.int32)


def _divided(values: Tensor, number: int) -> Tensor:
    """A float32 quotient on every device: by a plain number, CUDA multiplies by the reciprocal."""
    return torch.div(values, torch.full_like(values, number))


def _fake_quantize_dynamic(x: Tensor, per_token: bool) -> Tensor:
    scale, zero = dynamic_grid(x, per_token)
    steps = (torch.round(x.float() / scale) + zero).clamp_(-127 if per_token else -128, 127)
    return ((steps - zero) * scale).to(x.dtype)


class _FakeQuantizeDynamic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, per_token: bool) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.tersor.fake_quantize_dynamic(x, per_token)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def _dynamic_autograd(x: Tensor, per_token: bool) -> Any:
    return _FakeQuantizeDynamic.apply(x, per_token)  # type: ignore[no-untyped-call]  # torch


def _register() -> None:
    for name, reference, autograd in (
        ("fake_quantize_blocks", _fake_quantize_blocks, _blocks_autograd),
        ("fake_quantize_dynamic", _fake_quantize_dynamic, _dynamic_autograd),
    ):
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, autograd, "Autograd")
        torch.library.register_fake(f"tersor::{name}", lambda x, *_: torch.empty_like(x), lib=_LIBRARY)


_register()

FAKE_QUANTIZE_BLOCKS = torch.ops.tersor.fake_quantize_blocks.default
FAKE_QUANTIZE_DYNAMIC = torch.ops.tersor.fake_quantize_dynamic.default
