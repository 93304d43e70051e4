"""The operators of the integer stage. Their reference implementations are the definition of the arithmetic.

A value of type int8 stands for (q - zero_point) * scale. Every backend that takes the integer stage gives these bits.

quantize     q = clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max), a float32 division
dequantize   x = float32(q - zero_point) * scale, of int8 values and of int32 accumulators
int_conv     acc = sum((qx - zero_point) * qw) + qb in int32, padded with the zero point; 1d, 2d or 3d, as the weight is
int_linear   the same, of matrices
int_matmul   acc = sum((qa - za) * (qb - zb)) in int32, with the batch dimensions of torch.matmul
int_mul      acc = (qa - za) * (qb - zb) in int32
int_sum      acc = sum(q - zero_point) in int32 over dimensions; int_sum_pool the same over windows, padded with nothing
requantize   q = clamp(round_half_even(float32(acc) * m) + zero_point, quant_min, quant_max), a float32 product; m is
             float32 and broadcasts over acc
int_add      q = clamp(round_half_even(((qa - za) * sa + (qb - zb) * sb) / sc) + zc, ...), every step in float32
int_lookup   q = table[qx + 128]
int_max_pool, int_resize_nearest   what torch does to floats, on integers

These are what ONNX Runtime and XNNPACK compute for quantized operators (Jacob et al. 2018, arXiv:1712.05877, with
requantization in float32). Moving data needs no operator of its own: ATen's work on int8.

`int_softmax` and `int_normalize` have integer definitions of their own, in `integer_norms`.

Accumulators must not overflow; `tersor.ir.accumulators` proves that they do not, from the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .operators import along, quantize_to_grid

aten = torch.ops.aten

_EXACT_IN_FLOAT32 = 1 << 24
"""Integers up to this, and their sums as long as they stay within it, are exact in float32."""
_LIBRARY = torch.library.Library("tersor", "FRAGMENT")


def quantize(x: Tensor, scale: Tensor, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """Float to int8, on one grid."""
    zero = torch.full((), zero_point, device=x.device)
    return quantize_to_grid(x, scale, zero, None, quant_min, quant_max).to(torch.int8)


def dequantize(q: Tensor, scale: Tensor, zero_point: int, axis: int | None) -> Tensor:
    """Int8 or int32 to float32; `axis` is that of per-channel scales."""
    return (q.to(torch.int32) - zero_point).to(torch.float32) * along(scale, axis, q.dim())


def requantize(acc: Tensor, multiplier: Tensor, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """Int32 accumulators to int8."""
    steps = (acc.to(torch.float32) * multiplier).round_()
    return steps.add_(zero_point).clamp_(quant_min, quant_max).to(torch.int8)


_CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
"""By the dimensions of the weight."""


def int_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """int8[N, C, ...] and int8[O, C / groups, ...] to int32[N, O, ...]."""
    convolve = _CONVOLUTIONS[weight.dim()]

    def product(values: Tensor, filters: Tensor) -> Tensor:
        return convolve(values, filters, None, stride, padding, dilation, groups)  # type: ignore[no-any-return]

    return _accumulate(product, x, weight, bias, zero_point, [1, -1] + [1] * (weight.dim() - 2))


def int_linear(x: Tensor, weight: Tensor, bias: Tensor | None, zero_point: int) -> Tensor:
    """int8[..., I] and int8[O, I] to int32[..., O]."""
    return _accumulate(torch.nn.functional.linear, x, weight, bias, zero_point, [-1])


def _accumulate(
    product: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    zero_point: int,
    shape: list[int],
) -> Tensor:
    """Integer products by float kernels whose every partial sum is exact."""
    values = x.to(torch.int32) - zero_point
    largest = int(weight.flatten(1).to(torch.int32).abs().sum(1).max()) if weight.numel() else 0
    exact = _exact_type(x, 255 * largest)
    acc = product(values.to(exact), weight.to(exact)).round_().to(torch.int32)
    return acc if bias is None else acc + bias.reshape(shape)


def int_matmul(a: Tensor, b: Tensor, zero_a: int, zero_b: int) -> Tensor:
    """int8[..., M, K] and int8[..., K, N] to int32[..., M, N]."""
    exact = _exact_type(a, 255 * 255 * a.shape[-1])
    left, right = (a.to(torch.int32) - zero_a).to(exact), (b.to(torch.int32) - zero_b).to(exact)
    return torch.matmul(left, right).round_().to(torch.int32)


def _exact_type(x: Tensor, furthest: int) -> torch.dtype:
    """The float type whose kernels give exact sums up to `furthest`, once they are rounded.

    A GPU's float32 kernels may go through tensor cores, or through transforms (Winograd) that are not exact; in float64
    the same transforms err by far less than half.
    """
    return torch.float32 if x.device.type == "cpu" and furthest < _EXACT_IN_FLOAT32 else torch.float64


def int_mul(a: Tensor, b: Tensor, zero_a: int, zero_b: int) -> Tensor:
    """Two int8 that broadcast to int32."""
    return (a.to(torch.int32) - zero_a) * (b.to(torch.int32) - zero_b)


def int_add(
    a: Tensor,
    b: Tensor,
    scale_a: float,
    zero_a: int,
    scale_b: float,
    zero_b: int,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
) -> Tensor:
    """Two int8 that broadcast to int8. Scales are float32 values; a negative one subtracts."""
    # On the device of the values: CUDA divides by a number on the CPU as a product with its reciprocal.
    scales = torch.tensor([scale_a, scale_b, scale], dtype=torch.float32).to(a.device).unbind()
    left = (a.to(torch.int32) - zero_a).to(torch.float32) * scales[0]
    right = (b.to(torch.int32) - zero_b).to(torch.float32) * scales[1]
    steps = torch.div(left + right, scales[2]).round_()
    return steps.add_(zero_point).clamp_(quant_min, quant_max).to(torch.int8)


def int_sum(x: Tensor, dims: Sequence[int], keepdim: bool, zero_point: int) -> Tensor:
    """int8 to int32, summed over dimensions."""
    return (x.to(torch.int32) - zero_point).sum(list(dims), keepdim, dtype=torch.int32)


def int_sum_pool(
    x: Tensor, zero_point: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    """int8[N, C, (H,) W] to int32, summed over windows of one or two dimensions. Padding adds nothing."""
    values = (x.to(torch.int32) - zero_point).to(torch.float64)
    flat = len(kernel) == 1
    values = values.unsqueeze(-2) if flat else values
    window, step, pad = (
        [*([fill] if flat else []), *given] for fill, given in ((1, kernel), (1, stride), (0, padding))
    )
    sums = torch.nn.functional.avg_pool2d(values, window, step, pad, ceil_mode, divisor_override=1)
    return (sums.squeeze(-2) if flat else sums).to(torch.int32)


def int_max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """int8[N, C, (H,) W] to int8, the greatest of each window of one or two dimensions."""
    pool = aten.max_pool1d.default if len(kernel) == 1 else aten.max_pool2d.default
    return pool(x.to(torch.float32), kernel, stride, padding, dilation, ceil_mode).to(torch.int8)  # type: ignore[no-any-return]


def int_resize_nearest(x: Tensor, size: Sequence[int] | None, scales: Sequence[float] | None) -> Tensor:
    """int8[N, C, H, W] to int8[N, C, *size], each value that of the nearest source position, as torch rounds it.

    Positions follow from the scales where they are given, and so does the size where that is None.
    """
    values = x.to(torch.float32)
    if size is None:
        return aten.upsample_nearest2d.vec(values, None, scales).to(torch.int8)  # type: ignore[no-any-return]
    height, width = scales or (None, None)
    return aten.upsample_nearest2d.default(values, list(size), height, width).to(torch.int8)  # type: ignore[no-any-return]


def int_lookup(x: Tensor, table: Tensor) -> Tensor:
    """int8 to int8, each value through a table int8[256]."""
    return table[x.to(torch.int64) + 128]


def _accumulated_conv(x: Tensor, weight: Tensor, bias: Any, zero_point: int, *geometry: Any) -> Tensor:
    convolve = _CONVOLUTIONS[weight.dim()]
    result: Tensor = convolve(x.to(torch.float32), weight.to(torch.float32), None, *geometry)
    return result.to(torch.int32)


def _accumulated_linear(x: Tensor, weight: Tensor, bias: Any, zero_point: int) -> Tensor:
    return torch.nn.functional.linear(x.to(torch.float32), weight.to(torch.float32)).to(torch.int32)


def _accumulated_matmul(a: Tensor, b: Tensor, *_: Any) -> Tensor:
    return torch.matmul(a.to(torch.float32), b.to(torch.float32)).to(torch.int32)


def _broadcast(a: Tensor, b: Tensor, *_: Any) -> Tensor:
    return (a + b).to(torch.int8)


OPERATORS: dict[str, tuple[str, Callable[..., Tensor], Callable[..., Tensor] | None]] = {
    "quantize": (
        "(Tensor x, Tensor scale, int zero_point, int quant_min, int quant_max) -> Tensor",
        quantize,
        lambda x, *_: torch.empty_like(x, dtype=torch.int8),
    ),
    "dequantize": (
        "(Tensor q, Tensor scale, int zero_point, int? axis) -> Tensor",
        dequantize,
        lambda q, *_: torch.empty_like(q, dtype=torch.float32),
    ),
    "requantize": (
        "(Tensor acc, Tensor multiplier, int zero_point, int quant_min, int quant_max) -> Tensor",
        requantize,
        lambda acc, *_: torch.empty_like(acc, dtype=torch.int8),
    ),
    "int_conv": (
        "(Tensor x, Tensor weight, Tensor? bias, int zero_point, int[] stride, int[] padding, int[] dilation, "
        "int groups) -> Tensor",
        int_conv,
        _accumulated_conv,
    ),
    "int_linear": (
        "(Tensor x, Tensor weight, Tensor? bias, int zero_point) -> Tensor",
        int_linear,
        _accumulated_linear,
    ),
    "int_matmul": ("(Tensor a, Tensor b, int zero_a, int zero_b) -> Tensor", int_matmul, _accumulated_matmul),
    "int_mul": ("(Tensor a, Tensor b, int zero_a, int zero_b) -> Tensor", int_mul, None),
    "int_add": (
        "(Tensor a, Tensor b, float scale_a, int zero_a, float scale_b, int zero_b, float scale, int zero_point, "
        "int quant_min, int quant_max) -> Tensor",
        int_add,
        _broadcast,
    ),
    "int_sum": ("(Tensor x, int[] dims, bool keepdim, int zero_point) -> Tensor", int_sum, None),
    "int_sum_pool": (
        "(Tensor x, int zero_point, int[] kernel, int[] stride, int[] padding, bool ceil_mode) -> Tensor",
        int_sum_pool,
        None,
    ),
    "int_max_pool": (
        "(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor",
        int_max_pool,
        None,
    ),
    "int_resize_nearest": ("(Tensor x, SymInt[]? size, float[]? scales) -> Tensor", int_resize_nearest, None),
    "int_lookup": ("(Tensor x, Tensor table) -> Tensor", int_lookup, lambda x, _: torch.empty_like(x)),
}
"""Name: schema, reference implementation, shape function (None: the reference itself, on tensors without values)."""


def register(operators: dict[str, tuple[str, Callable[..., Tensor], Callable[..., Tensor] | None]]) -> None:
    """Make operators known to torch."""
    for name, (schema, reference, shape) in operators.items():
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"tersor::{name}", shape or reference, lib=_LIBRARY)


register(OPERATORS)

QUANTIZE = torch.ops.tersor.quantize.default
DEQUANTIZE = torch.ops.tersor.dequantize.default
REQUANTIZE = torch.ops.tersor.requantize.default
INT_CONV = torch.ops.tersor.int_conv.default
INT_LINEAR = torch.ops.tersor.int_linear.default
INT_MATMUL = torch.ops.tersor.int_matmul.default
INT_MUL = torch.ops.tersor.int_mul.default
INT_ADD = torch.ops.tersor.int_add.default
INT_SUM = torch.ops.tersor.int_sum.default
INT_SUM_POOL = torch.ops.tersor.int_sum_pool.default
INT_MAX_POOL = torch.ops.tersor.int_max_pool.default
INT_RESIZE_NEAREST = torch.ops.tersor.int_resize_nearest.default
INT_LOOKUP = torch.ops.tersor.int_lookup.default
