"""Rules for convolutions, matrix products and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tersor.passes.arguments import argument

from .block_quantization import blocks_of, linear_of_blocks
from .builder import Builder, Value
from .convolution_forms import CONVOLUTION, blocks_of_pixels, padded
from .dtypes import element_type, tensor_proto
from .dynamic_quantization import dynamic_linear
from .normalization import softmax_or_zeros
from .quantization import constant_on_grid
from .registry import Refusal, rule

aten = torch.ops.aten

_HIDES = -30_000.0
"""Added to a score, it leaves exp(score) at zero, and both stay within float16."""

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
    special = dynamic_linear(b, bias) if blocks is None else linear_of_blocks(b, x, blocks, bias)
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


# -- attention -------------------------------------------------------------------------------------------------------


@rule(aten.scaled_dot_product_attention.default)
def attention(
    b: Builder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None,
    enable_gqa: bool,
) -> str:
    """softmax(query @ key^T * scale + mask) @ value, query [..., L, E], key [..., S, E], value [..., S, Ev]."""
    if dropout_p > 0:
        raise Refusal("attention drops out values, as in training", "trace the model in eval mode")
    keys, values = (_repeat_heads(b, v, query) if enable_gqa else v for v in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    half = b.options.half_attention and query.dtype == torch.float32
    dtype = torch.float16 if half else query.dtype
    queries: str = query
    if half:
        queries, factor = b.op("Mul", query, b.number(factor, torch.float32)), 1.0
        queries, keys, values = (b.op("Cast", v, to=element_type(dtype)) for v in (queries, keys, values))
    perm = [*range(key.rank - 2), key.rank - 1, key.rank - 2]
    scores = b.op("MatMul", queries, b.op("Transpose", keys, perm=perm))
    scores = scores if factor == 1 else b.op("Mul", scores, b.number(factor, dtype))
    if is_causal:
        weights = b.op("Softmax", b.op("Add", scores, _additive(b, _causal_mask(b, query, key), dtype)), axis=-1)
    else:
        weights = _masked_softmax(b, scores, mask, dtype)
    result = b.op("MatMul", weights, values)
    return b.op("Cast", result, to=element_type(query.dtype)) if half else result


def _masked_softmax(b: Builder, scores: str, mask: Value | None, dtype: torch.dtype) -> str:
    """ATen gives zeros where a whole row is masked, for which ONNX's softmax gives NaN."""
    if mask is None:
        return b.op("Softmax", scores, axis=-1)
    masked = b.op("Add", scores, _additive(b, mask, dtype))
    if _shows_every_row(b, mask):
        return b.op("Softmax", masked, axis=-1)
    if not b.options.half_attention:
        return softmax_or_zeros(b, masked, dtype)
    weights = b.op("Softmax", masked, axis=-1)  # the form that TensorRT takes into its kernel, which hides any NaN
    return b.op("Where", b.op("IsNaN", weights), b.number(0, dtype), weights)


def _additive(b: Builder, mask: Value, dtype: torch.dtype) -> str:
    """Zero to see and minus infinity to hide: adding that is faster than choosing, as the mask is smaller.

    Where a mask is narrowed to float16, numbers that hide are kept finite, so that a row of them alone stays finite.
    """
    if mask.dtype != torch.bool:
        narrowed = dtype == torch.float16 and mask.dtype != dtype
        finite = b.op("Max", mask, b.number(_HIDES, mask.dtype)) if narrowed else mask
        return b.cast(finite, dtype)
    return b.op("Where", mask, b.number(0, dtype), b.number(-math.inf, dtype))


def _shows_every_row(b: Builder, mask: Value) -> bool:
    """Whether it is known that no row is hidden as a whole."""
    tensor = b.program.constant(argument(b.node, "attn_mask"))
    if tensor is None or not mask.rank:
        return False
    seen = tensor if tensor.dtype == torch.bool else tensor != -math.inf
    return bool(seen.any(-1).all())


def _causal_mask(b: Builder, query: Value, key: Value) -> Value:
    """Row i sees columns 0 to i."""
    sizes = b.op("Concat", *(b.shape(v, v.rank - 2, v.rank - 1) for v in (query, key)), axis=0)
    ones = b.op("ConstantOfShape", sizes, value=tensor_proto("value", torch.tensor([1], dtype=torch.int32)))
    mask = b.op("Cast", b.op("Trilu", ones, upper=0), to=9)  # 9 is BOOL
    return Value(mask, torch.empty(0, 0, dtype=torch.bool, device="meta"))


def _repeat_heads(b: Builder, x: Value, query: Value) -> str:
    """Each head of key or value serves as many consecutive heads of the query: [..., H, S, E], H divides Hq."""
    times = query.shape[-3] // x.shape[-3]
    axis = x.rank - 2
    repeated = b.op("Expand", b.op("Unsqueeze", x, b.ints(axis)), b.ints(times, 1, 1))
    lead = [b.shape(x, 0, axis - 1)] if axis > 1 else []
    return b.op("Reshape", repeated, b.op("Concat", *lead, b.ints(query.shape[-3]), b.shape(x, axis, x.rank), axis=0))
