"""Rules for convolutions, and the padding that they share with pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..call import Call
from ..registry import rule
from ..values import Value
from .linear import bias_on_grid

aten = torch.ops.aten

_CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
CONVOLUTIONS = frozenset(_CONVOLUTIONS.values())
_TRANSPOSED = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}


def pads(
    op: Call, x: Value, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """The padding before and after along each spatial axis, that of `auto_pad` worked out."""
    mode = op.attr_str("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * len(kernel)
    if mode == "NOTSET":
        given = op.attr_ints("pads", [0] * (2 * len(kernel)))
        if len(given) != 2 * len(kernel):
            op.refuse("pads do not fit the kernel", expected=f"{2 * len(kernel)} numbers", found=given)
        return list(zip(given[: len(kernel)], given[len(kernel) :], strict=True))
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        op.refuse("auto_pad is not known", expected="NOTSET, VALID, SAME_UPPER or SAME_LOWER", found=mode)
    totals = []
    for axis, (window, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        totals.append(_same(op, x, axis + 2, (window - 1) * dilation + 1, stride))
    return [(t - t // 2, t // 2) if mode == "SAME_LOWER" else (t // 2, t - t // 2) for t in totals]


def _same(op: Call, x: Value, axis: int, reach: int, stride: int) -> int:
    """The padding with which a window gives ceil(size / stride) results."""
    if stride == 1:
        return reach - 1
    size = op.size(x, axis)
    if not isinstance(size, int):
        op.refuse("auto_pad with a stride needs a size that does not change", found=f"axis {axis} is dynamic")
    return max((-(-size // stride) - 1) * stride + reach - size, 0)


def spatial(op: Call, x: Value) -> int:
    """How many spatial axes the input has. Refuses more than three, and none."""
    count = op.rank(x) - 2
    if count not in _CONVOLUTIONS:
        op.refuse("torch has it for 1 to 3 spatial axes", found=f"an input of rank {op.rank(x)}")
    return count


def pad_spatial(op: Call, x: Value, amounts: Sequence[tuple[int, int]], value: float) -> Value:
    """The input with its spatial axes padded by a constant."""
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return op.call(aten.pad.default, x, flat, "constant", value) if any(flat) else x


@rule("Conv")
def convolution(op: Call) -> Value:
    x, weight = op.input(0), op.input(1)
    n = spatial(op, x)
    kernel = op.attr_ints("kernel_shape", op.static_shape(weight)[2:])
    strides, dilations = op.attr_ints("strides", [1] * n), op.attr_ints("dilations", [1] * n)
    amounts = pads(op, x, kernel, strides, dilations)
    bias = bias_on_grid(op, op.optional(2), x, weight)
    if any(before != after for before, after in amounts):
        x, amounts = pad_spatial(op, x, amounts, 0.0), [(0, 0)] * n
    padding = [before for before, _ in amounts]
    group = op.attr_int("group", 1)
    return op.call(_CONVOLUTIONS[n], x, weight, bias, strides, padding, dilations, group)


@rule("ConvTranspose")
def transposed_convolution(op: Call) -> Value:
    """Padding that differs before and after is cut off the result; so is what `output_shape` leaves out."""
    x, weight, bias = op.input(0), op.input(1), op.optional(2)
    n = spatial(op, x)
    kernel = op.attr_ints("kernel_shape", op.static_shape(weight)[2:])
    strides, dilations = op.attr_ints("strides", [1] * n), op.attr_ints("dilations", [1] * n)
    extra, group = op.attr_ints("output_padding", [0] * n), op.attr_int("group", 1)
    amounts = _transposed_pads(op, x, kernel, strides, dilations, extra)
    if all(before == after for before, after in amounts) and all(before >= 0 for before, _ in amounts):
        padding = [before for before, _ in amounts]
        return op.call(_TRANSPOSED[n], x, weight, bias, strides, padding, extra, group, dilations)
    full = op.call(_TRANSPOSED[n], x, weight, bias, strides, [0] * n, [0] * n, group, dilations)
    return pad_spatial(op, full, [(-b, e - a) for (b, a), e in zip(amounts, extra, strict=True)], 0.0)


def _transposed_pads(
    op: Call, x: Value, kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> list[tuple[int, int]]:
    """The padding that gives the wanted output: `output_shape`, or size * stride, or as stated."""
    mode = op.attr_str("auto_pad", "NOTSET")
    if mode == "NOTSET" and not op.has_attr("output_shape"):
        return pads(op, x, kernel, strides, dilations)
    if mode == "VALID":
        return [(0, 0)] * len(kernel)
    sizes = op.static_shape(x)[2:]
    wanted = op.attr_ints("output_shape", [size * stride for size, stride in zip(sizes, strides, strict=True)])
    amounts = []
    for i, size in enumerate(sizes):
        total = strides[i] * (size - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - wanted[-len(sizes) :][i]
        half = total // 2
        amounts.append((half, total - half) if mode == "SAME_UPPER" else (total - half, half))
    return amounts
