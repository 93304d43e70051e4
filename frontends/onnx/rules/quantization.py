"""Rules for quantized models: QuantizeLinear and DequantizeLinear around a float operator are a fake_quantize."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.operators import FAKE_QUANTIZE, along

from ..call import Call
from ..dtypes import DTYPES, GRIDS, ONNX_TYPES, Grid, name_of
from ..registry import Function, rule
from ..values import Known, Quantized, Value
from .block_quantization import weight_on_blocks

aten = torch.ops.aten


@rule("QuantizeLinear", domain="com.microsoft")
@rule("QuantizeLinear")
def quantize(op: Call) -> Value:
    """Kept until it meets its DequantizeLinear; integers where it does not."""
    if op.attr_int("block_size", 0):
        return quantize_blocks(op)
    x, scale = op.input(0), constant(op, 1)
    zero = _zero_point(op, scale)
    onnx_type = zero.onnx_type or ONNX_TYPES[zero.tensor.dtype]
    if onnx_type not in GRIDS:
        op.refuse(
            "there is no integer grid of that type", expected=", ".join(map(name_of, GRIDS)), found=name_of(onnx_type)
        )
    stored = Quantized(op.node(x), scale, zero, _axis(op, x, scale), onnx_type)
    return replace(stored, exact=is_on_grid(op, stored.source, stored))


@rule("DequantizeLinear", domain="com.microsoft")
@rule("DequantizeLinear")
def dequantize(op: Call) -> Value:
    if op.attr_int("block_size", 0):
        return dequantize_blocks(op)
    x, scale = op.input(0), constant(op, 1)
    zero, axis = _zero_point(op, scale, x), _axis(op, x, scale)
    table = None if axis is not None else _table(op, x)
    if table is None:
        return real(op, x, scale, zero, axis, (x, op.input(1), axis))
    rows = real(op, table, scale, zero, None, (table, op.input(1), None))
    return op.call(aten.embedding.default, rows, x.args[1][0])  # type: ignore[union-attr, index]  # as `_table` saw


def real(op: Call, x: Value, scale: Known, zero: Known, axis: int | None, key: Hashable) -> Value:
    """What integers stand for. `key` is equal for equal arguments: then the result is one value."""
    if isinstance(x, Quantized):
        same = torch.equal(x.scale.tensor, scale.tensor) and torch.equal(x.zero_point.tensor, zero.tensor)
        if same and x.axis == axis:
            return on_grid(op, x)
    if not isinstance(x, Known):
        return _by_arithmetic(op, x, scale, zero, axis)
    return op.importer.once(key, lambda: _weight(op, x, scale, zero, axis))


def _table(op: Call, x: Value) -> Known | None:
    """The stored matrix of which `x` is rows, looked up before they are dequantized; None for any other value."""
    if not isinstance(x, fx.Node) or x.target is not aten.index.Tensor:
        return None
    table, places = op.importer.known(x.args[0]), x.args[1]  # type: ignore[arg-type]  # a node
    return table if table is not None and table.tensor.dim() == 2 and len(places) == 1 else None  # type: ignore[arg-type]


def _weight(op: Call, x: Known, scale: Known, zero: Known, axis: int | None) -> Value:
    """Stored integers as a parameter that holds what they stand for, on their grid."""
    numbers = _dequantized(x.tensor, scale.tensor, zero.tensor, axis).to(scale.tensor.dtype)
    grid = GRIDS.get(x.onnx_type or ONNX_TYPES[x.tensor.dtype])
    bias_scale = scale.tensor.float() if x.tensor.dtype is torch.int32 else None
    weight = Known(numbers, x.name, trainable=True, bias_scale=bias_scale)
    if grid is None or not bool((scale.tensor > 0).all()):
        return weight
    return fake_quantize(op, weight, scale, zero, axis, _symmetric(grid, x, zero))


def _symmetric(grid: Grid, x: Known, zero: Known) -> Grid:
    """Without the least integer where zero is in the middle and no weight needs it: symmetric, as -127 to 127."""
    middle = bool((zero.tensor.to(torch.int32) == -grid.shift).all())
    if not middle or not x.tensor.numel() or int(x.tensor.min()) + grid.shift == grid.low:
        return grid
    return replace(grid, low=grid.low + 1)


# -- Values that stay on a grid ----------------------------------------------------------------------------------------

_MOVES = frozenset(
    {aten.reshape.default, aten.flatten.using_ints, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
    | {aten.unsqueeze.default, aten.permute.default, aten.expand.default, aten.repeat.default, aten.flip.default}
    | {aten.slice.Tensor, aten.select.int, aten.index_select.default, aten.split_with_sizes.default, operator.getitem}
    | {aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.pixel_shuffle.default}
    | {aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, aten.cat.default}
)
"""Operators whose results are among the values of their first argument."""


def _keeps_values(node: fx.Node) -> bool:
    """Whether all values of the result are values of the first argument, or zero, which every grid has."""
    return node.target in _MOVES or (node.target is aten.pad.default and node.args[2:] in ((), ("constant", 0.0)))


def grid_of(value: Value) -> fx.Node | None:
    """The fake-quantize that put a value on its grid, before it was moved; None where there is none."""
    node: Any = value
    while isinstance(node, fx.Node) and _keeps_values(node):
        node = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
    return node if isinstance(node, fx.Node) and node.target is FAKE_QUANTIZE else None


def is_on_grid(op: Call, source: fx.Node, stored: Quantized) -> bool:
    """Whether a value was put on that grid and only moved since, so that rounding it again changes nothing."""
    if stored.axis is not None:
        return False
    waiting = [source]
    while waiting:
        node = waiting.pop()
        if _keeps_values(node):
            first: Any = node.args[0]
            waiting.extend(first if isinstance(first, list | tuple) else [first])
        elif node.target is not FAKE_QUANTIZE or not _is_grid_of(op, node, stored):
            return False
    return True


def _is_grid_of(op: Call, node: fx.Node, stored: Quantized) -> bool:
    _, scale, zero, axis, low, high = node.args
    found = [op.importer.known(argument) for argument in (scale, zero)]  # type: ignore[arg-type]  # nodes
    grid = GRIDS[stored.onnx_type].within(stored.bounds)
    if axis is not None or None in found or int(low) < grid.low or int(high) > grid.high:  # type: ignore[arg-type]
        return False
    wanted = stored.scale.tensor.float(), stored.zero_point.tensor.to(torch.int32) + grid.shift
    return all(torch.equal(known.tensor, tensor) for known, tensor in zip(found, wanted, strict=True))  # type: ignore[union-attr]


def on_grid(op: Call, stored: Quantized) -> Value:
    """The values that integers stand for."""
    if stored.exact and stored.bounds is None:
        return stored.source
    grid = GRIDS[stored.onnx_type].within(stored.bounds)
    scale, zero = stored.scale, stored.zero_point
    return op.importer.once(
        ("values", stored), lambda: fake_quantize(op, stored.source, scale, zero, stored.axis, grid)
    )


def stands_for(stored: Quantized, integer: float) -> float:
    """The value that one integer stands for, on a grid that is one for all."""
    return (integer - float(stored.zero_point.tensor)) * float(stored.scale.tensor)


def moved(op: Call, stored: Quantized, result: Value) -> Value:
    """What was moved from a grid, as integers of that grid; anything else as it is."""
    if not isinstance(result, fx.Node) or not op.dtype(result).is_floating_point:
        return result
    return replace(stored, source=result, bounds=None, exact=True)


class FloatCall(Call):
    """The call of a float operator: the same node with other inputs."""

    def __init__(self, op: Call, values: Sequence[Value | None]) -> None:
        self.__dict__.update(op.__dict__)
        self.opset = op.scope.opset("")
        self._values = values

    def has(self, index: int) -> bool:
        return index < len(self._values) and self._values[index] is not None

    def input(self, index: int) -> Value:
        value = self._values[index] if self.has(index) else None
        if value is None:
            self.refuse(f"input {index} is missing")
        return value

    @property
    def inputs(self) -> list[Value]:
        return [value for value in self._values if value is not None]

    def only_reader(self, index: int) -> bool:
        return False


def on_stored(rule: Function) -> Function:
    """Let the rule of an operator that moves values take integers: what they stand for moves, and stays on the grid."""

    @wraps(rule)
    def either(op: Call) -> Value | Sequence[Value | None] | None:
        stored = op.optional(0)
        if not isinstance(stored, Quantized) or stored.axis is not None:
            return rule(op)
        rest = [op.optional(index) for index in range(1, len(op.proto.input))]
        result = rule(FloatCall(op, [on_grid(op, stored), *rest]))
        if isinstance(result, list):
            return [None if part is None else moved(op, stored, part) for part in result]
        return moved(op, stored, result)  # type: ignore[arg-type]  # one value

    return either


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


# -- A scale for each block --------------------------------------------------------------------------------------------


def dequantize_blocks(op: Call) -> Value:
    """Stored integers are a parameter on the grids of its blocks; others are computed with."""
    x = op.input(0)
    on_grids = _stored_blocks(op, x) if isinstance(x, Known) else None
    if on_grids is not None:
        return on_grids
    scale, zero = _blocks(op, 1), _blocks(op, 2) if op.has(2) else None
    wide = op.cast(x, torch.float32)
    shifted = wide if zero is None else op.call(aten.sub.Tensor, wide, op.cast(zero, torch.float32))
    result = op.cast(op.call(aten.mul.Tensor, shifted, op.frozen(scale)), op.dtype(scale))
    if isinstance(result, Known):
        return replace(result, name=x.name if isinstance(x, Known) else "", trainable=True)
    return result


def _stored_blocks(op: Call, x: Known) -> Value | None:
    scale, zero = (op.importer.known(op.input(index)) if op.has(index) else None for index in (1, 2))
    grid = GRIDS.get(x.onnx_type or ONNX_TYPES[x.tensor.dtype])
    block, rank = op.attr_int("block_size", 0), x.tensor.dim()
    if scale is None or grid is None or block < 1 or scale.tensor.dim() != rank or (op.has(2) and zero is None):
        return None
    axis = op.axis(op.attr_int("axis", 1), rank)
    wanted = [-(-size // block) if place == axis else size for place, size in enumerate(x.tensor.shape)]
    places = torch.zeros(wanted, dtype=torch.int32) if zero is None else zero.tensor
    if list(scale.tensor.shape) != wanted or list(places.shape) != wanted or x.tensor.dtype is torch.int32:
        return None
    return weight_on_blocks(op, x.name, x.tensor, scale, places, axis, block, grid)


def quantize_blocks(op: Call) -> Value:
    scale = _blocks(op, 1)
    zero = _blocks(op, 2) if op.has(2) else None
    onnx_type = op.attr_int("output_dtype", ONNX_TYPES[torch.uint8]) if zero is None else _type_of(zero, op.dtype(zero))
    if onnx_type not in GRIDS or onnx_type not in DTYPES:
        op.refuse("torch has no such integers", found=name_of(onnx_type))
    steps = op.call(aten.round.default, op.call(aten.div.Tensor, op.input(0), op.frozen(scale)))
    if zero is not None:
        steps = op.call(aten.add.Tensor, steps, op.cast(zero, torch.float32))
    dtype = DTYPES[onnx_type]
    span = torch.iinfo(dtype)
    return op.cast(op.call(aten.clamp.default, steps, span.min, span.max), dtype)


def _type_of(value: Value, dtype: torch.dtype) -> int:
    known = value.onnx_type if isinstance(value, Known) else None
    return known or ONNX_TYPES[dtype]


def _blocks(op: Call, index: int) -> Value:
    """A scale or zero point of each block, repeated along the axis to one of each element."""
    x, value = op.input(0), op.input(index)
    axis, size = op.axis(op.attr_int("axis", 1), op.rank(x)), op.attr_int("block_size", 0)
    if size < 1 or op.rank(value) != op.rank(x):
        op.refuse("scales do not fit the tensor", expected="one an axis, or block_size and one a block", found=size)
    repeated = op.call(aten.repeat_interleave.self_int, value, size, axis)
    result: Value = op.call(aten.slice.Tensor, repeated, axis, 0, op.size(x, axis))
    if isinstance(value, Known) and isinstance(result, Known):
        return replace(result, onnx_type=value.onnx_type)
    return result
