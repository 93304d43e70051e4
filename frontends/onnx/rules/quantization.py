"""Rules for quantized models: QuantizeLinear and DequantizeLinear around a float operator are a fake_quantize."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from tersor.ir.operators import FAKE_QUANTIZE, along

from ..call import Call
from ..dtypes import DTYPES, GRIDS, ONNX_TYPES, Grid, name_of
from ..registry import rule
from ..values import Known, Quantized, Value

aten = torch.ops.aten


@rule("QuantizeLinear")
def quantize(op: Call) -> Value:
    """Kept until it meets its DequantizeLinear; integers where it does not."""
    x, scale = op.input(0), constant(op, 1)
    zero = _zero_point(op, scale)
    onnx_type = zero.onnx_type or ONNX_TYPES[zero.tensor.dtype]
    if onnx_type not in GRIDS:
        op.refuse(
            "there is no integer grid of that type", expected=", ".join(map(name_of, GRIDS)), found=name_of(onnx_type)
        )
    return Quantized(op.node(x), scale, zero, _axis(op, x, scale), onnx_type)


@rule("DequantizeLinear")
def dequantize(op: Call) -> Value:
    x, scale = op.input(0), constant(op, 1)
    axis = _axis(op, x, scale)
    return real(op, x, scale, _zero_point(op, scale, x), axis, (x, op.input(1), axis))


def real(op: Call, x: Value, scale: Known, zero: Known, axis: int | None, key: Hashable) -> Value:
    """What integers stand for. `key` is equal for equal arguments: then the result is one value."""
    if isinstance(x, Quantized):
        same = torch.equal(x.scale.tensor, scale.tensor) and torch.equal(x.zero_point.tensor, zero.tensor)
        if same and x.axis == axis:
            grid = GRIDS[x.onnx_type]
            return op.importer.once(("values", x), lambda: fake_quantize(op, x.source, scale, zero, axis, grid))
    if not isinstance(x, Known):
        return _by_arithmetic(op, x, scale, zero, axis)
    return op.importer.once(key, lambda: _weight(op, x, scale, zero, axis))


def _weight(op: Call, x: Known, scale: Known, zero: Known, axis: int | None) -> Value:
    """Stored integers as a parameter that holds what they stand for, on their grid."""
    numbers = _dequantized(x.tensor, scale.tensor, zero.tensor, axis).to(scale.tensor.dtype)
    grid = GRIDS.get(x.onnx_type or ONNX_TYPES[x.tensor.dtype])
    bias_scale = scale.tensor.float() if x.tensor.dtype is torch.int32 else None
    weight = Known(numbers, x.name, trainable=True, bias_scale=bias_scale)
    if grid is None or not bool((scale.tensor > 0).all()):
        return weight
    return fake_quantize(op, weight, scale, zero, axis, grid)


def fake_quantize(op: Call, x: Value, scale: Known, zero: Known, axis: int | None, grid: Grid) -> Value:
    """The values that a grid has for `x`. The IR stores signed integers: unsigned zero points are shifted."""
    steps = Known(scale.tensor.float(), scale.name)
    place = Known(zero.tensor.to(torch.int32) + grid.shift, zero.name)
    return op.call(FAKE_QUANTIZE, x, steps, place, axis, grid.low, grid.high)


def constant(op: Call, index: int) -> Known:
    """A scale or zero point, one number or one an index of an axis."""
    known = op.importer.known(op.input(index))
    if known is None:
        op.refuse("a scale or zero point is computed when the model runs", expected="a constant")
    if known.tensor.dim() > 1:
        op.refuse("a scale for each block is not taken", found=f"a scale of rank {known.tensor.dim()}")
    tensor = known.tensor.reshape(()) if known.tensor.numel() == 1 else known.tensor
    return Known(tensor, known.name, onnx_type=known.onnx_type)


def _zero_point(op: Call, scale: Known, stored: Value | None = None) -> Known:
    """The zero point; where it is left out, zero in the type of the integers."""
    if op.has(2):
        return constant(op, 2)
    dtype, onnx_type = torch.uint8, None
    if isinstance(stored, Known):
        dtype, onnx_type = stored.tensor.dtype, stored.onnx_type
    elif stored is not None:
        dtype = op.dtype(stored)
    elif op.attr_int("output_dtype", 0):
        onnx_type = op.attr_int("output_dtype")
        dtype = DTYPES.get(onnx_type, torch.int8)
    name = f"{scale.name}_zero_point" if scale.name else ""
    return Known(torch.zeros(scale.tensor.shape, dtype=dtype), name, onnx_type=onnx_type)


def _axis(op: Call, x: Value, scale: Known) -> int | None:
    """The axis of the scales; None where there is one for all."""
    if scale.tensor.dim() == 0:
        return None
    return op.axis(op.attr_int("axis", 1), op.rank(x))


def _dequantized(values: Tensor, scale: Tensor, zero: Tensor, axis: int | None) -> Tensor:
    steps = values.double() - along(zero.double(), axis, values.dim())
    return steps * along(scale.double(), axis, values.dim())


def _by_arithmetic(op: Call, x: Value, scale: Known, zero: Known, axis: int | None) -> Value:
    """Integers that come from elsewhere: an input of the model, or moved since they were quantized."""
    rank = op.rank(x)
    wide = op.cast(x, torch.float32)
    moved = op.call(aten.sub.Tensor, wide, Known(along(zero.tensor.float(), axis, rank)))
    result: Value = op.call(aten.mul.Tensor, moved, Known(along(scale.tensor.float(), axis, rank)))
    return op.cast(result, scale.tensor.dtype)
