"""Rules for operators that read or write values at places that tensors name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tersor.ir.shapes import KEY

from .block_quantization import blocks_of, rows_of_blocks
from .builder import Builder, Value
from .movement import END
from .registry import Refusal, rule

aten = torch.ops.aten

_SUM, _MAX = 0, 2
"""Modes of an embedding bag; the third is the mean."""
_REDUCTIONS = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}


@rule(aten.embedding.default)
def embedding(b: Builder, weight: Value, indices: Value) -> str:
    blocks = blocks_of(b, 0)
    rows = None if blocks is None else rows_of_blocks(b, blocks, indices)
    return b.op("Gather", weight, indices, axis=0) if rows is None else rows


@rule(aten.embedding_bag.padding_idx)
def embedding_bag(
    b: Builder,
    weight: Value,
    indices: Value,
    offsets: Value,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Value | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> tuple[str, ...]:
    """Bags of one size: their rows side by side, reduced."""
    size = None if include_last_offset else _bag_size(b, indices)
    if size is None:
        raise Refusal("bags of different sizes", "give the indices as a matrix, one row a bag")
    if padding_idx is not None and padding_idx >= 0:
        raise Refusal("bags with padding", "leave padding_idx out, and weigh padding by per_sample_weights of 0")
    if any(user.args[1] != 0 for user in b.node.users):
        raise Refusal("the places in the bags are read", "read the first result alone")
    rows = b.op("Gather", weight, b.op("Reshape", indices, b.ints(-1, size)), axis=0)
    if per_sample_weights is not None:
        rows = b.op("Mul", rows, b.op("Reshape", per_sample_weights, b.ints(-1, size, 1)))
    if mode == _MAX:
        return (b.op("ReduceMax", rows, b.ints(1), keepdims=0),)
    return (b.op("ReduceSum" if mode == _SUM else "ReduceMean", rows, b.ints(1), keepdims=0),)


def _bag_size(b: Builder, indices: Value) -> int | None:
    """How many indices each bag has, where all are known to have as many: offsets of 0, n, 2n and so on."""
    node, count = b.node.args[2], b.node.meta[KEY][0].shape[0]
    offsets = b.program.constant(node)
    if offsets is not None:
        length = indices.shape[0]
        size = length // len(offsets) if isinstance(length, int) and len(offsets) else 0
        return size if size and torch.equal(offsets.long(), torch.arange(0, length, size)) else None
    steps = _step(node) if isinstance(node, fx.Node) else None
    return steps if steps and b.same_size(indices.shape[0], count * steps) else None


def _step(node: fx.Node) -> int | None:
    """The distance of numbers counted from 0."""
    if node.target is aten.arange.default:
        return 1
    if node.target is not aten.arange.start_step or node.args[0] != 0:
        return None
    step = node.args[2] if len(node.args) > 2 else 1
    return step if type(step) is int else None


@rule(aten.index_select.default)
def index_select(b: Builder, x: Value, dim: int, index: Value) -> str:
    return b.move("Gather", x, index, axis=dim)


@rule(aten.gather.default)
def gather(b: Builder, x: Value, dim: int, index: Value) -> str:
    return b.op("GatherElements", x, index, axis=dim)


@rule(aten.index.Tensor)
def index(b: Builder, x: Value, indices: Sequence[Value | None]) -> str:
    """One index is a Gather. Several are broadcast and stacked for GatherND, with the dimensions that they index first.

    As in NumPy, the indices' own dimensions stand where the indexed ones stood if those are neighbours, else first.
    """
    indexed = {axis: i for axis, i in enumerate(indices) if i is not None}
    _refuse_masks(indexed.values())
    axes = list(indexed)
    blocks = blocks_of(b, 0) if axes == [0] else None
    if blocks is not None and (rows := rows_of_blocks(b, blocks, indexed[0])) is not None:
        return rows
    if len(axes) == 1:
        return b.op("Gather", x, indexed[axes[0]], axis=axes[0])
    rest = [axis for axis in range(x.rank) if axis not in indexed]
    perm = axes + rest
    source: str = x if perm == list(range(x.rank)) else b.op("Transpose", x, perm=perm)
    result = b.op("GatherND", source, _places(b, list(indexed.values())))
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    if not adjacent or axes[0] == 0:
        return result
    width = b.result.rank - len(rest)
    before = len([axis for axis in rest if axis < axes[0]])
    order = [*range(width, width + before), *range(width), *range(width + before, width + len(rest))]
    return b.op("Transpose", result, perm=order)


@rule(aten.index_put.default)
def index_put(b: Builder, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool) -> str:
    _refuse_masks(i for i in indices if i is not None)
    leading = [i for i in indices if i is not None]
    if len(leading) != len(indices):
        raise Refusal("writes at indices that leave out a dimension before them", "index the leading dimensions")
    places = _places(b, leading)
    lead = b.op("Slice", b.shape(places), b.ints(0), b.ints(-1))
    shape = b.op("Concat", lead, b.shape(x, len(leading), x.rank), axis=0) if len(leading) < x.rank else lead
    updates = b.op("Expand", values, shape)
    return b.op("ScatterND", x, places, updates, reduction="add" if accumulate else None)


def _refuse_masks(indices: Any) -> None:
    if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
        raise Refusal(
            "a boolean index selects a number of values that depends on data", "torch.where, which keeps the shape"
        )


def _places(b: Builder, indices: list[Value]) -> str:
    """The indices broadcast together, the last dimension running over them."""
    indices_ = [b.cast(i, torch.int64) for i in indices]
    sizes = _broadcast(b, indices)
    wanted = [size for size, _, _ in sizes]
    for place, given in enumerate(indices):
        own = [1] * (len(sizes) - given.rank) + list(given.shape)
        if not all(b.same_size(size, want) for size, want in zip(own, wanted, strict=True)) or given.rank < len(sizes):
            indices_[place] = b.op("Expand", indices_[place], _sizes(b, sizes))
    axis = b.ints(-1)
    columns = [b.op("Unsqueeze", i, axis) for i in indices_]
    return columns[0] if len(columns) == 1 else b.op("Concat", *columns, axis=-1)


def _broadcast(b: Builder, values: list[Value]) -> list[tuple[Any, Value, int]]:
    """The sizes that the values have together, each with a value that has it, and that value's axis."""
    rank = max(value.rank for value in values)
    found: list[tuple[Any, Value, int]] = []
    for place in range(-rank, 0):
        having = [(value.shape[place], value, value.rank + place) for value in values if value.rank >= -place]
        found.append(next((entry for entry in having if not b.same_size(entry[0], 1)), having[0]))
    return found


def _sizes(b: Builder, sizes: list[tuple[Any, Value, int]]) -> str:
    """Sizes as a vector; those that change from call to call are asked of the value that has them."""
    if all(isinstance(size, int) for size, _, _ in sizes):
        return b.ints(*(size for size, _, _ in sizes))
    parts = [b.ints(size) if isinstance(size, int) else b.shape(value, axis, axis + 1) for size, value, axis in sizes]
    return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=0)


@rule(aten.scatter.src)
def scatter(b: Builder, x: Value, dim: int, places: Value, src: Value) -> str:
    return b.op("ScatterElements", x, places, _prefix(b, src, places), axis=dim)


@rule(aten.scatter_add.default)
def scatter_add(b: Builder, x: Value, dim: int, places: Value, src: Value) -> str:
    return b.op("ScatterElements", x, places, _prefix(b, src, places), axis=dim, reduction="add")


@rule(aten.scatter_reduce.two)
def scatter_reduce(b: Builder, x: Value, dim: int, places: Value, src: Value, how: str, *, include_self: bool) -> str:
    if how not in _REDUCTIONS or not include_self:
        raise Refusal("scatters what ONNX does not", f"{', '.join(_REDUCTIONS)} with include_self")
    return b.op("ScatterElements", x, places, _prefix(b, src, places), axis=dim, reduction=_REDUCTIONS[how])


def _prefix(b: Builder, src: Value, places: Value) -> str:
    """ATen reads from the source only as far as there are places."""
    if all(b.same_size(s, p) for s, p in zip(src.shape, places.shape, strict=True)):
        return src
    return b.op("Slice", src, b.ints(*[0] * src.rank), b.shape(places))


@rule(aten.scatter.value)
def scatter_value(b: Builder, x: Value, dim: int, places: Value, value: float) -> str:
    updates = b.op("Expand", b.number(value, x.dtype), b.shape(places))
    return b.op("ScatterElements", x, places, updates, axis=dim)


@rule(aten.slice_scatter.default)
def slice_scatter(b: Builder, x: Value, src: Value, dim: int, start: Any, end: Any, step: int) -> str:
    """Write at the places that slicing a count of all places gives."""
    axis = dim % x.rank
    count = b.op("Squeeze", b.shape(x, axis, axis + 1), b.ints(0))
    every = b.op("Range", b.number(0, torch.int64), count, b.number(1, torch.int64))
    low, high = (0 if start is None else start), (END if end is None else end)
    chosen = b.op("Slice", every, b.sizes([low]), b.sizes([high]), b.ints(0), b.ints(step))
    column = b.op("Reshape", chosen, b.ints(*(-1 if d == axis else 1 for d in range(x.rank))))
    return b.op("ScatterElements", x, b.op("Expand", column, b.shape(src)), b.cast(src, x.dtype), axis=axis)


@rule(aten.select_scatter.default)
def select_scatter(b: Builder, x: Value, src: Value, dim: int, place: Any) -> str:
    axis = dim % x.rank
    updates = b.op("Unsqueeze", b.cast(src, x.dtype), b.ints(axis))
    places = b.op("Expand", b.operand(place, torch.int64), b.shape(updates))
    return b.op("ScatterElements", x, places, updates, axis=axis)


@rule(aten.copy.default)
def copy(b: Builder, x: Value, src: Value) -> str:
    moved = b.cast(src, x.dtype)
    same = x.rank == src.rank and all(b.same_size(s, t) for s, t in zip(src.shape, x.shape, strict=True))
    return moved if same else b.op("Expand", moved, b.shape(x))


@rule(aten.tril.default)
def tril(b: Builder, x: Value, diagonal: int) -> str:
    return _triangle(b, x, diagonal, upper=0)


@rule(aten.triu.default)
def triu(b: Builder, x: Value, diagonal: int) -> str:
    return _triangle(b, x, diagonal, upper=1)


def _triangle(b: Builder, x: Value, diagonal: int, *, upper: int) -> str:
    return b.op("Trilu", x, b.operand(diagonal, torch.int64), upper=upper)


@rule(aten.one_hot.default)
def one_hot(b: Builder, x: Value, classes: int) -> str:
    if classes < 0:
        raise Refusal("the number of classes depends on data", "one_hot(x, num_classes)")
    return b.op("OneHot", x, b.number(classes, torch.int64), b.ints(0, 1), axis=-1)
