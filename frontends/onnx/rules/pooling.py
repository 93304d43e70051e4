"""Rules for pooling."""

from __future__ import annotations

import math

import torch

from ..call import Call
from ..registry import rule
from ..values import Value
from .convolution import pad_spatial, pads, spatial
from .quantization import on_stored

aten = torch.ops.aten

_MAX = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_MAX_WITH_INDICES = {
    1: aten.max_pool1d_with_indices.default,
    2: aten.max_pool2d_with_indices.default,
    3: aten.max_pool3d_with_indices.default,
}
_AVERAGE = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
_GLOBAL_AVERAGE = {
    1: aten.adaptive_avg_pool1d.default,
    2: aten.adaptive_avg_pool2d.default,
    3: aten.adaptive_avg_pool3d.default,
}


def _fits(amounts: list[tuple[int, int]], kernel: list[int]) -> bool:
    """Whether torch takes the padding: as much at either end, half a window at most."""
    return all(b == a and 2 * b <= window for (b, a), window in zip(amounts, kernel, strict=True))


@rule("MaxPool")
@on_stored
def max_pool(op: Call) -> Value | list[Value]:
    x = op.input(0)
    n, kernel = spatial(op, x), op.attr_ints("kernel_shape")
    strides, dilations = op.attr_ints("strides", [1] * n), op.attr_ints("dilations", [1] * n)
    amounts, ceil = pads(op, x, kernel, strides, dilations), bool(op.attr_int("ceil_mode", 0))
    dtype = op.dtype(x)
    if not dtype.is_floating_point:
        x = op.cast(x, torch.float32)
    if op.wants(1):
        return _with_indices(op, x, kernel, strides, amounts, dilations, ceil)
    if not _fits(amounts, kernel):
        x, amounts = pad_spatial(op, x, amounts, float("-inf")), [(0, 0)] * n
    result = op.call(_MAX[n], x, kernel, strides, [b for b, _ in amounts], dilations, ceil)
    return op.cast(result, dtype)


def _with_indices(
    op: Call,
    x: Value,
    kernel: list[int],
    strides: list[int],
    amounts: list[tuple[int, int]],
    dilations: list[int],
    ceil: bool,
) -> list[Value]:
    """Places count through the whole input: torch counts within one plane, and knows row-major order alone."""
    n = len(kernel)
    if op.attr_int("storage_order", 0) and n > 1:
        op.refuse("column-major indices are not taken", expected="storage_order 0")
    if not _fits(amounts, kernel):
        op.refuse("indices with such padding are not taken", expected="equal padding, half a window at most")
    sizes = op.static_shape(x)
    padding = [b for b, _ in amounts]
    values, places = op.call_several(_MAX_WITH_INDICES[n], x, kernel, strides, padding, dilations, ceil)
    planes = sizes[0] * sizes[1]
    plane = torch.Size(sizes[2:]).numel()
    starts = op.call(aten.arange.start_step, 0, planes * plane, plane, dtype=torch.int64)
    offsets = op.call(aten.reshape.default, starts, [sizes[0], sizes[1], *[1] * n])
    return [values, op.call(aten.add.Tensor, places, offsets)]


@rule("AveragePool")
def average_pool(op: Call) -> Value:
    """Where torch does not take padding, ceil_mode or dilation as they are, it divides sums by counts."""
    x = op.input(0)
    n, kernel = spatial(op, x), op.attr_ints("kernel_shape")
    strides, dilations = op.attr_ints("strides", [1] * n), op.attr_ints("dilations", [1] * n)
    amounts, ceil = pads(op, x, kernel, strides, dilations), bool(op.attr_int("ceil_mode", 0))
    counted = bool(op.attr_int("count_include_pad", 0))
    if max(dilations) > 1:
        op.refuse("torch has no average over dilated windows", found=f"dilations {dilations}")
    if _fits(amounts, kernel):
        padding = [b for b, _ in amounts]
        result: Value = op.call(_AVERAGE[n], x, kernel, strides, padding, ceil, counted or not any(padding))
        return result
    ones = op.call(aten.full.default, [1, 1, *op.shape(x)[2:]], 1.0, dtype=op.dtype(x))
    inside = pad_spatial(op, ones, amounts, 1.0 if counted else 0.0)
    sums = op.call(_AVERAGE[n], pad_spatial(op, x, amounts, 0.0), kernel, strides, [0] * n, ceil)
    result = op.call(aten.div.Tensor, sums, op.call(_AVERAGE[n], inside, kernel, strides, [0] * n, ceil))
    return result


@rule("GlobalAveragePool")
def global_average_pool(op: Call) -> Value:
    x = op.input(0)
    n = spatial(op, x)
    return op.call(_GLOBAL_AVERAGE[n], x, [1] * n)


@rule("GlobalMaxPool")
def global_max_pool(op: Call) -> Value:
    x = op.input(0)
    return op.call(aten.amax.default, x, list(range(2, op.rank(x))), True)


@rule("LpPool")
def lp_pool(op: Call) -> Value:
    """(sum |x| ^ p) ^ (1 / p) over each window: an average times the number of its elements."""
    x, p = op.input(0), op.attr_int("p", 2)
    n, kernel = spatial(op, x), op.attr_ints("kernel_shape")
    strides, dilations = op.attr_ints("strides", [1] * n), op.attr_ints("dilations", [1] * n)
    if max(dilations) > 1 or op.attr_int("ceil_mode", 0):
        op.refuse("torch has no such sums", expected="ceil_mode 0, dilations 1", found=f"dilations {dilations}")
    amounts = pads(op, x, kernel, strides, dilations)
    powers = op.call(aten.pow.Tensor_Scalar, op.call(aten.abs.default, x), p)
    means = op.call(_AVERAGE[n], pad_spatial(op, powers, amounts, 0.0), kernel, strides)
    sums = op.call(aten.mul.Tensor, means, math.prod(kernel))
    return op.call(aten.pow.Tensor_Scalar, sums, 1 / p)


@rule("GlobalLpPool")
def global_lp_pool(op: Call) -> Value:
    x = op.input(0)
    axes = list(range(2, op.rank(x)))
    return op.call(aten.linalg_vector_norm.default, x, op.attr_int("p", 2), axes, True)


@rule("MaxUnpool")
def max_unpool(op: Call) -> Value:
    """Each value at its place; places count through the whole output without its `output_shape`."""
    x, places = op.input(0), op.input(1)
    sizes = op.static_shape(x)
    n, kernel = spatial(op, x), op.attr_ints("kernel_shape")
    strides, given = op.attr_ints("strides", [1] * n), op.attr_ints("pads", [0] * 2 * n)
    small = [(sizes[i + 2] - 1) * strides[i] + kernel[i] - given[i] - given[n + i] for i in range(n)]
    inner = [*sizes[:2], *small]
    zeros = op.call(aten.full.default, [math.prod(inner)], 0.0, dtype=op.dtype(x))
    flat = op.call(aten.reshape.default, places, [-1]), op.call(aten.reshape.default, x, [-1])
    result = op.call(aten.reshape.default, op.call(aten.scatter.src, zeros, 0, *flat), inner)
    if not op.has(2):
        return result
    extra = [wanted - size for wanted, size in zip(op.ints(2)[2:], small, strict=True)]
    return pad_spatial(op, result, [(0, amount) for amount in extra], 0.0)
