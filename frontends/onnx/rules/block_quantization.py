"""Rules for weights with a scale for each block of neighbours, as 4-bit language models have them."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, over_blocks

from ..call import Call
from ..dtypes import Grid
from ..registry import rule
from ..values import Known, Value

aten = torch.ops.aten
MICROSOFT = "com.microsoft"
_FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.UINT4})


def weight_on_blocks(
    op: Call, name: str, stored: Tensor, scale: Known, zero: Tensor, axis: int, block: int, grid: Grid
) -> Value:
    """Stored integers as a parameter that holds what they stand for, on the grids of its blocks.

    stored, zero: as in the file; the IR's integers are shifted to be signed. scale, zero: one a block along `axis`.
    """
    size = stored.shape[axis]
    steps, places = scale.tensor.float(), zero.to(torch.int32)
    numbers = (stored.float() - over_blocks(places, axis, block, size)) * over_blocks(steps, axis, block, size)
    weight = Known(numbers.to(scale.tensor.dtype), name, trainable=True)
    if not bool((steps > 0).all()):
        return weight
    grids = Known(steps, scale.name), Known(places + grid.shift, f"{scale.name}_zero_point" if scale.name else "")
    return op.call(FAKE_QUANTIZE_BLOCKS, weight, *grids, axis, block, grid.low, grid.high)


@rule("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(op: Call) -> Value:
    """x @ w^T + bias with w [N, K] stored as 4 or 8 bits in blocks along K, each row padded to whole blocks."""
    columns, rows = op.attr_int("K"), op.attr_int("N")
    bits, block = op.attr_int("bits", 4), op.attr_int("block_size")
    if bits not in (4, 8) or block < 16 or columns < 1 or rows < 1 or (op.has(4) and bool(op.input(4))):
        op.refuse("a way of storing blocks that is not taken", expected="4 or 8 bits, no group index")
    count = -(-columns // block)
    stored = _unpacked(op, op.known(1), bits, rows, count * block)[:, :columns]
    scale = op.importer.known(op.input(2))
    assert scale is not None or op.known(2) is not None, "refused where it is not known"
    steps = _fitting(op, op.known(2), rows, count)
    zero = torch.full((rows, count), 1 << (bits - 1))
    if op.has(3):
        packed = op.known(3)
        if packed.dtype is not torch.uint8:
            op.refuse("zero points that are no integers", expected="packed uint8")
        zero = _unpacked(op, packed, bits, rows, count)
    low = -(1 << (bits - 1))
    name = scale.name if scale is not None else ""
    weight_name = op.proto.input[1]
    grid = Grid(low, -low - 1, low)
    weight = weight_on_blocks(op, weight_name, stored, Known(steps, name), zero, 1, block, grid)
    return op.call(aten.linear.default, op.input(0), weight, op.optional(5))


@rule("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(op: Call) -> Value:
    """Entries along an axis of a tensor of 4 or 8 bits in blocks along another: an embedding, or experts chosen."""
    source, scale = op.importer.known(op.input(0)), op.importer.known(op.input(2))
    if source is None or scale is None or (op.has(3) and op.importer.known(op.input(3)) is None):
        op.refuse("the weight is computed when the model runs", expected="a constant")
    weight = op.importer.once((source, op.input(2), "rows"), lambda: _table(op, source, scale))
    axis = op.axis(op.attr_int("gather_axis", 0), scale.tensor.dim())
    if axis == 0 and scale.tensor.dim() == 2:
        return op.call(aten.embedding.default, weight, op.input(1))
    return op.call(aten.index.Tensor, weight, [*[None] * axis, op.input(1)])


def _table(op: Call, source: Known, scale: Known) -> Value:
    """The weight on its grids; where it is stored as bytes, two to a byte along the last axis for 4 bits."""
    stored, bits = source.tensor, op.attr_int("bits", 4)
    whole, rank = source.onnx_type in _FOUR_BITS, source.tensor.dim()
    axis, block = op.axis(op.attr_int("quantize_axis", 1), rank), op.attr_int("block_size", 128)
    if bits not in (4, 8) or block < 16 or not (bits == 4 if whole else stored.dtype is torch.uint8):
        op.refuse(
            "a way of storing blocks that is not taken", expected="4 bits, or 4 or 8 in uint8", found=f"{bits} bits"
        )
    packed = not whole and bits == 4
    stored = _halves(stored) if packed else stored
    low = -(1 << (bits - 1))
    zero = op.known(3) if op.has(3) else torch.full(scale.tensor.shape, 0 if whole else -low)
    zero = _halves(zero)[..., : scale.tensor.shape[-1]] if packed and op.has(3) else zero
    shift = 0 if source.onnx_type == TensorProto.INT4 else low
    wanted = [-(-size // block) if place == axis else size for place, size in enumerate(stored.shape)]
    if list(scale.tensor.shape) != wanted or list(zero.shape) != wanted:
        op.refuse("there is not a scale for each block", expected=wanted, found=list(scale.tensor.shape))
    return weight_on_blocks(op, source.name, stored, scale, zero, axis, block, Grid(low, -low - 1, shift))


def _halves(packed: Tensor) -> Tensor:
    """The two halves of each byte, the low one first, along the last axis."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def _unpacked(op: Call, packed: Tensor, bits: int, rows: int, columns: int) -> Tensor:
    """Rows of small integers, two a byte where they have 4 bits, the low half first; each row whole bytes."""
    width = -(-columns * bits // 8)
    if packed.numel() != rows * width or packed.dtype is not torch.uint8:
        op.refuse("the stored bytes do not fit the sizes", expected=rows * width, found=packed.numel())
    flat = packed.reshape(rows, width)
    if bits == 8:
        return flat
    return torch.stack([flat & 15, flat >> 4], dim=-1).reshape(rows, 2 * width)[:, :columns]


def _fitting(op: Call, scales: Tensor, rows: int, count: int) -> Tensor:
    if scales.numel() != rows * count:
        op.refuse("there is not a scale for each block", expected=rows * count, found=scales.numel())
    return scales.reshape(rows, count)
