"""Rules for matrix products: with a constant matrix they are `linear`, whose weight is [out, in]."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, bias_scale

from ..call import Call
from ..registry import rule
from ..values import Known, Value
from .quantization import grid_of

aten = torch.ops.aten


def transposed(op: Call, value: Value) -> Value | None:
    """The transpose of a constant matrix, also of one that is fake-quantized; None for any other value."""
    known = op.importer.known(value)
    if known is not None and known.tensor.dim() == 2:
        if known.transposed is not None:
            return known.transposed
        return op.importer.once(("transposed", known), lambda: transpose_known(known))
    if not isinstance(value, fx.Node) or op.rank(value) != 2:
        return None
    if value.target is FAKE_QUANTIZE_BLOCKS:
        return _transposed_blocks(op, value)
    if value.target is not FAKE_QUANTIZE:
        return None
    source, scale, zero_point, axis, low, high = value.args
    flipped = transposed(op, source)  # type: ignore[arg-type]  # its first argument is a node
    if flipped is None:
        return None
    other = None if axis is None else 1 - int(axis)  # type: ignore[arg-type]  # by the schema: an int or None
    return op.call(FAKE_QUANTIZE, flipped, scale, zero_point, other, low, high)


def _transposed_blocks(op: Call, value: fx.Node) -> Value | None:
    """A matrix on grids of blocks, and their scales and zero points, all turned."""
    *tensors, axis, block, low, high = value.args
    turned = [transposed(op, tensor) for tensor in tensors]  # type: ignore[arg-type]  # nodes
    if any(tensor is None for tensor in turned):
        return None
    return op.call(FAKE_QUANTIZE_BLOCKS, *turned, 1 - int(axis), block, low, high)  # type: ignore[arg-type]  # an int


def bias_on_grid(op: Call, bias: Value | None, x: Value, weight: Value) -> Value | None:
    """A bias that stood in the file as int32 on the grid of its accumulator, put on that grid again."""
    known = None if bias is None else op.importer.known(bias)
    if known is None or known.bias_scale is None:
        return bias
    nodes = [node for node in (grid_of(x), grid_of(weight)) if node is not None]
    if len(nodes) != 2:
        return bias
    scales = [op.importer.known(node.args[1]) for node in nodes]  # type: ignore[arg-type]  # scales are nodes
    if any(scale is None for scale in scales):
        return bias
    product = bias_scale(scales[0].tensor, scales[1].tensor)  # type: ignore[union-attr]  # none is None
    if not torch.allclose(product.expand_as(known.tensor), known.bias_scale.expand_as(known.tensor), rtol=1e-6, atol=0):
        return bias
    return op.call(FAKE_QUANTIZE_BIAS, bias, nodes[0].args[1], nodes[1].args[1])


def transpose_known(known: Known) -> Known:
    """The transpose, as a tensor of its own that remembers what it is the transpose of."""
    return replace(known, tensor=known.tensor.t().contiguous(), transposed=known)


@rule("Det")
def det(op: Call) -> Value:
    return op.call(aten.det.default, op.input(0))


@rule("MatMul")
def matmul(op: Call) -> Value:
    return matmul_of(op, op.input(0), op.input(1))


def matmul_of(op: Call, left: Value, right: Value) -> Value:
    """The product; a linear where the right operand is a constant matrix."""
    weight = transposed(op, right) if op.dtype(left).is_floating_point and isinstance(left, fx.Node) else None
    return op.call(aten.matmul.default, left, right) if weight is None else op.call(aten.linear.default, left, weight)


@rule("Gemm")
def gemm(op: Call) -> Value:
    """alpha * a @ b + beta * c, each matrix transposed on request."""
    a, b, c = op.input(0), op.input(1), op.optional(2)
    alpha, beta = op.attr_float("alpha", 1.0), op.attr_float("beta", 1.0)
    if op.attr_int("transA", 0):
        a = op.call(aten.permute.default, a, [1, 0])
    weight = b if op.attr_int("transB", 0) else transposed(op, b)
    vector = c is None or (op.rank(c) == 1 and op.size(c, 0) == op.size(b, 0 if op.attr_int("transB", 0) else 1))
    if weight is not None and vector and alpha == 1 and (c is None or beta == 1) and op.dtype(a).is_floating_point:
        return op.call(aten.linear.default, a, weight, bias_on_grid(op, c, a, weight))
    if op.attr_int("transB", 0):
        b = op.call(aten.permute.default, b, [1, 0])
    product = _scaled(op, op.call(aten.matmul.default, a, b), alpha)
    return product if c is None else op.call(aten.add.Tensor, product, _scaled(op, c, beta))


def _scaled(op: Call, value: Value, factor: float) -> Value:
    return value if factor == 1 else op.call(aten.mul.Tensor, value, factor)
