"""Rules for operators that pick elements."""

from __future__ import annotations

import sys

import torch
from torch import fx

from ..call import Call
from ..registry import rule
from ..values import Known, Size, Value
from .quantization import on_stored

aten = torch.ops.aten

_MOST_PLACES = 1 << 20


@rule("Gather")
@on_stored
def gather(op: Call) -> Value:
    """Rows of a trained table are an embedding. Its indices must not be negative; torch refuses them as it runs."""
    x, indices = op.input(0), op.input(1)
    axis = op.axis(op.attr_int("axis", 0), op.rank(x))
    table, chosen = op.importer.known(x), op.importer.known(indices)
    if chosen is not None and chosen.tensor.dim() == 0:
        return op.call(aten.select.int, x, axis, int(chosen.tensor))
    counted = isinstance(indices, fx.Node) if chosen is None else bool((chosen.tensor >= 0).all())
    if table is not None and table.trainable and axis == 0 and op.rank(x) == 2 and counted:
        return op.call(aten.embedding.default, x, indices)
    return op.call(aten.index.Tensor, x, [*[None] * axis, indices])


@rule("Slice", until=9)
@on_stored
def slice_by_attributes(op: Call) -> Value:
    starts, ends = op.attr_ints("starts"), op.attr_ints("ends")
    axes = op.attr_ints("axes", list(range(len(starts))))
    return _slice(op, list(starts), list(ends), axes, [1] * len(starts))


@rule("Slice", since=10)
@on_stored
def slice_(op: Call) -> Value:
    starts, ends = op.sizes(1), op.sizes(2)
    axes = op.ints(3) if op.has(3) else list(range(len(starts)))
    steps = op.ints(4) if op.has(4) else [1] * len(starts)
    return _slice(op, starts, ends, axes, steps)


def _slice(op: Call, starts: list[Size], ends: list[Size], axes: list[int], steps: list[int]) -> Value:
    x = op.input(0)
    rank = op.rank(x)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = op.axis(axis, rank)
        if step < 0:
            x = _backwards(op, x, axis, start, end, step)
            continue
        size = op.size(x, axis)
        past_the_end = isinstance(end, int) and end >= (size if isinstance(size, int) else 2**31 - 1)
        end = sys.maxsize if past_the_end else end
        if (start, end, step) != (0, sys.maxsize, 1):
            x = op.call(aten.slice.Tensor, x, axis, start, end, step)
    return x


def _backwards(op: Call, x: Value, axis: int, start: Size, end: Size, step: int) -> Value:
    """torch slices forwards alone."""
    size = op.size(x, axis)
    if isinstance(size, int) and size <= _MOST_PLACES and isinstance(start, int) and isinstance(end, int):
        last = None if end < -size else end
        places = list(range(*slice(start, last, step).indices(size)))
        result: Value = op.call(aten.index_select.default, x, axis, Known(torch.tensor(places, dtype=torch.int64)))
        return result
    if start in (-1, sys.maxsize, 2**31 - 1) and isinstance(end, int) and end < -(2**30):
        flipped = op.call(aten.flip.default, x, [axis])
        return flipped if step == -1 else op.call(aten.slice.Tensor, flipped, axis, 0, sys.maxsize, -step)
    op.refuse("a slice backwards through an axis whose size changes", found=f"axis {axis}")
