"""Rules for operators that move, join, part and repeat elements."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch

from ..call import Call
from ..registry import rule
from ..values import Known, Quantized, Size, Value
from .linear import transposed
from .quantization import grid_of, moved, on_grid, on_stored, stands_for

aten = torch.ops.aten

_MOST_PARTS = 1 << 12
_MOST_PLACES = 1 << 20


@rule("Transpose")
@on_stored
def transpose(op: Call) -> Value:
    x = op.input(0)
    order = op.attr_ints("perm", list(range(op.rank(x)))[::-1])
    known = op.importer.known(x)
    turned = transposed(op, known) if known is not None and order == [1, 0] else None
    if turned is not None:
        return turned
    return op.call(aten.permute.default, x, order)


@rule("Concat")
def concat(op: Call) -> Value:
    """Integers of one grid stay on it."""
    values, axis = op.inputs, op.attr_int("axis")
    first = values[0]
    if isinstance(first, Quantized) and all(_same_grid(first, value) for value in values):
        parts = [on_grid(op, value) for value in values if isinstance(value, Quantized)]
        return moved(op, first, op.call(aten.cat.default, parts, axis))
    return op.call(aten.cat.default, values, axis)


def _same_grid(first: Quantized, other: Value) -> bool:
    return (
        isinstance(other, Quantized)
        and first.axis is None
        and (other.axis, other.onnx_type) == (None, first.onnx_type)
        and torch.equal(first.scale.tensor, other.scale.tensor)
        and torch.equal(first.zero_point.tensor, other.zero_point.tensor)
    )


@rule("Split")
@on_stored
def split(op: Call) -> list[Value]:
    """By given sizes, or into equal parts of which the last may be smaller."""
    x, axis = op.input(0), op.attr_int("axis", 0)
    if op.opset >= 13 and op.has(1):
        sizes = list(op.sizes(1))
    elif op.has_attr("split"):
        sizes = list(op.attr_ints("split"))
    else:
        size = op.size(x, axis)
        if not isinstance(size, int):
            op.refuse("equal parts of an axis whose size changes", hint="state the sizes of the parts")
        parts = op.attr_int("num_outputs", len(op.proto.output))
        if not 0 < parts <= max(size, len(op.proto.output)) or parts > _MOST_PARTS:
            op.refuse("the number of parts is not one for this axis", expected=f"1 to {size}", found=parts)
        part = -(-size // max(parts, 1))
        sizes = [min(part, size - part * index) for index in range(parts)]
    return op.call_several(aten.split_with_sizes.default, x, sizes, axis)


@rule("Tile")
@on_stored
def tile(op: Call) -> Value:
    return op.call(aten.repeat.default, op.input(0), op.sizes(1))


@rule("Pad", until=10)
def pad_by_attributes(op: Call) -> Value:
    x = op.input(0)
    return _pad(op, x, op.attr_ints("pads"), list(range(op.rank(x))), op.attr_float("value", 0.0))


@rule("Pad", since=11)
def pad(op: Call) -> Value:
    x = op.input(0)
    rank = op.rank(x)
    axes = [op.axis(axis, rank) for axis in op.ints(3)] if op.has(3) else list(range(rank))
    value = _filling(op) if op.has(2) else 0.0
    if isinstance(x, Quantized) and x.axis is None:
        return moved(op, x, _pad(op, on_grid(op, x), op.ints(1), axes, stands_for(x, value)))
    return _pad(op, x, op.ints(1), axes, value)


def _filling(op: Call) -> Any:
    """The number to pad with; quantizers store it as an integer, like all else."""
    value = op.input(2)
    stored = grid_of(value)
    known = None if stored is None or stored is not value else op.importer.known(stored.args[0])  # type: ignore[arg-type]  # a node
    return op.known(2).item() if known is None else known.tensor.item()


def _pad(op: Call, x: Value, amounts: list[int], axes: list[int], value: float) -> Value:
    if len(amounts) != 2 * len(axes):
        op.refuse("pads do not fit the axes", expected=f"{2 * len(axes)} numbers", found=amounts)
    pairs = {axis: (amounts[i], amounts[i + len(axes)]) for i, axis in enumerate(axes)}
    mode = op.attr_str("mode", "constant")
    if mode != "constant":
        return _pad_from_inside(op, x, pairs, mode)
    flat = [amount for axis in range(op.rank(x))[::-1] for amount in pairs.get(axis, (0, 0))]
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return op.call(aten.pad.default, x, flat, "constant", value) if flat else x


def _pad_from_inside(op: Call, x: Value, pairs: dict[int, tuple[int, int]], mode: str) -> Value:
    """Padding with the tensor's own values: numpy says which, by the same names."""
    if mode not in ("reflect", "edge", "wrap"):
        op.refuse("the mode is not known", expected="constant, reflect, edge or wrap", found=mode)
    for axis, (before, after) in pairs.items():
        size = op.size(x, axis)
        if before == after == 0:
            continue
        if not isinstance(size, int):
            op.refuse(f"padding by {mode} along an axis whose size changes", found=f"axis {axis}")
        if size + max(before, 0) + max(after, 0) > _MOST_PLACES:
            op.refuse("so much is not padded", expected=f"at most {_MOST_PLACES} places along an axis")
        places = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
        places = np.pad(places, (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]  # checked
        x = op.call(aten.index_select.default, x, axis, Known(torch.from_numpy(places.copy())))
    return x


@rule("DepthToSpace")
@on_stored
def depth_to_space(op: Call) -> Value:
    """Blocks of channels become blocks of pixels; by CRD as PyTorch's pixel shuffle, by DCR with the channels last."""
    x, block = op.input(0), op.attr_int("blocksize")
    mode = op.attr_str("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        op.refuse("the mode is not known", expected="DCR or CRD", found=mode)
    if mode == "CRD":
        return op.call(aten.pixel_shuffle.default, x, block)
    batch, channels, height, width = op.shape(x)
    if not isinstance(channels, int) or block < 1 or channels % (block * block):
        op.refuse("the channels are no whole blocks", expected=f"a multiple of {block}^2", found=channels)
    depth = channels // (block * block)
    parts = op.call(aten.reshape.default, x, [batch, block, block, depth, height, width])
    turned = op.call(aten.permute.default, parts, [0, 3, 4, 1, 5, 2])
    return op.call(aten.reshape.default, turned, [batch, depth, *_times(op, height, width, block)])


@rule("SpaceToDepth")
@on_stored
def space_to_depth(op: Call) -> Value:
    """The inverse: with DCR a block's place counts before the channel, with CRD after it."""
    x, block = op.input(0), op.attr_int("blocksize")
    mode = op.attr_str("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        op.refuse("the mode is not known", expected="DCR or CRD", found=mode)
    batch, channels, height, width = op.shape(x)
    if block < 1:
        op.refuse("the block has no size", expected="a positive blocksize", found=block)
    down, across = (op.importer.size(operator.floordiv, size, block) for size in (height, width))
    parts = op.call(aten.reshape.default, x, [batch, channels, down, block, across, block])
    order = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
    deep = op.importer.size(operator.mul, channels, block * block)
    return op.call(aten.reshape.default, op.call(aten.permute.default, parts, order), [batch, deep, down, across])


def _times(op: Call, height: Size, width: Size, block: int) -> list[Size]:
    return [op.importer.size(operator.mul, size, block) for size in (height, width)]
