"""Rules for convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .block_quantization import blocks_of, linear_of_blocks
from .builder import Builder, Value
from .convolution_forms import CONVOLUTION, blocks_of_pixels, padded
from .dynamic_quantization import dynamic_linear
from .integer_products import static_linear
from .quantization import constant_on_grid
from .registry import rule

aten = torch.ops.aten

# -- convolution -----------------------------------------------------------------------------------------------------


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def conv(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> str:
    if b.options.fast_convolutions and b.node.target is CONVOLUTION and b.node in b.kernels:
        return _fast_convolution(b, weight, bias, stride, dilation, groups)
    pads = _spread(padding, weight.rank - 2) * 2
    return _convolve(b, "Conv", x, weight, bias, stride, pads, dilation, groups)


def _fast_convolution(
    b: Builder, weight: Value, bias: Value | None, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> str:
    """In a form that ONNX Runtime runs faster, where there is one."""
    given, blocks = padded(b.node), blocks_of_pixels(b.program, b.node)
    x = b.value(given.source)
    if blocks is None:
        return _convolve(b, "Conv", x, weight, bias, stride, given.pads, dilation, groups)
    arranged = constant_on_grid(b, blocks.stored, blocks.weight)
    return b.op("Conv", blocks.source(b, x), arranged, bias, pads=list(blocks.pads))


@rule(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def conv_padding(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    groups: int,
) -> str:
    """`same` pads by dilation * (kernel - 1) in all, the odd one at the end."""
    spatial = weight.rank - 2
    steps = _spread(dilation, spatial)
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(steps, weight.shape[2:], strict=True)]
    pads = [*(t // 2 for t in total), *(t - t // 2 for t in total)]
    return _convolve(b, "Conv", x, weight, bias, stride, pads, dilation, groups)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> str:
    spatial = weight.rank - 2
    pads, extra = _spread(padding, spatial) * 2, _spread(output_padding, spatial)
    return _convolve(b, "ConvTranspose", x, weight, bias, stride, pads, dilation, groups, output_padding=extra)


def _convolve(
    b: Builder,
    operator: str,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    **attributes: Any,
) -> str:
    spatial = weight.rank - 2
    batched = x.rank == weight.rank
    source = x if batched else b.move("Unsqueeze", x, b.ints(0))
    result = b.op(
        operator,
        source,
        weight,
        bias,
        strides=_spread(stride, spatial),
        pads=list(pads),
        dilations=_spread(dilation, spatial),
        group=groups,
        **attributes,
    )
    return result if batched else b.end_with_move("Squeeze", result, b.ints(0))


def _spread(value: int | Sequence[int], count: int) -> list[int]:
    """ATen lets one number stand for all spatial dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


# -- matrix products -------------------------------------------------------------------------------------------------


@rule(aten.linear.default)
def linear(b: Builder, x: Value, weight: Value, bias: Value | None) -> str:
    """Gemm of matrices; more dimensions are folded where the weight is quantized.

    Integer kernels take a bias in Gemm alone, and of a MatMul whose weight alone is quantized ONNX Runtime quantizes
    the activations too, on grids that the program does not hold.
    """
    blocks = blocks_of(b, 1)
    special = _integer_linear(b, x, bias) if blocks is None else linear_of_blocks(b, x, blocks, bias)
    if special is not None:
        return special
    if x.rank == 2:
        return b.op("Gemm", x, weight, bias, transB=1)
    if x.rank > 2 and not weight.constant:
        rows = b.move("Reshape", x, b.ints(-1, weight.shape[1]))
        product = b.op("Gemm", rows, weight, bias, transB=1)
        return b.end_with_move("Reshape", product, _leading_sizes(b, x, weight.shape[0]))
    product = b.op("MatMul", x, b.op("Transpose", weight, perm=[1, 0]))
    return product if bias is None else b.op("Add", product, bias)


def _integer_linear(b: Builder, x: Value, bias: Value | None) -> str | None:
    dynamic = dynamic_linear(b, bias)
    return static_linear(b, x, bias) if dynamic is None else dynamic


def _leading_sizes(b: Builder, x: Value, last: int) -> str:
    """The sizes of `x` with another last one, as a constant where all or all but one are numbers."""
    sizes = [size if isinstance(size, int) else -1 for size in x.shape[:-1]]
    if sizes.count(-1) <= 1 and 0 not in sizes:
        return b.ints(*sizes, last)
    return b.op("Concat", b.shape(x, 0, x.rank - 1), b.ints(last), axis=0)


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def matmul(b: Builder, x: Value, y: Value) -> str:
    return b.op("MatMul", x, y)


@rule(aten.addmm.default)
def addmm(b: Builder, added: Value, x: Value, y: Value, *, beta: float, alpha: float) -> str:
    return b.op("Gemm", x, y, added, alpha=float(alpha), beta=float(beta))


@rule(aten.baddbmm.default)
def baddbmm(b: Builder, added: Value, x: Value, y: Value, *, beta: float, alpha: float) -> str:
    product = b.op("MatMul", x, y)
    product = product if alpha == 1 else b.op("Mul", product, b.number(alpha, x.dtype))
    added_ = added if beta == 1 else b.op("Mul", added, b.number(beta, x.dtype))
    return b.op("Add", product, added_)


@rule(aten.outer.default)
def outer(b: Builder, x: Value, y: Value) -> str:
    return b.op("Mul", b.op("Unsqueeze", x, b.ints(1)), y)


@rule(aten.einsum.default)
def einsum(b: Builder, equation: str, operands: Sequence[Value]) -> str:
    return b.op("Einsum", *operands, equation=equation)
