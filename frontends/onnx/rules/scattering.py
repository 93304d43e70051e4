"""Rules for operators that read and write elements at computed places."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..call import Call
from ..registry import rule
from ..values import Known, Size, Value

aten = torch.ops.aten

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""What ONNX calls a way to combine elements with updates -> what torch calls it."""


def from_front(op: Call, places: Value, size: Size) -> Value:
    """Places of which negative ones count from the end, as torch's gather and scatter want them."""
    known = op.importer.known(places)
    if known is not None and not bool((known.tensor < 0).any()):
        return places
    if isinstance(places, fx.Node) and _counts_from_front(places):
        return places
    negative = op.call(aten.lt.Scalar, places, 0)
    return op.call(aten.where.self, negative, op.call(aten.add.Tensor, places, size), places)


_PLACES = frozenset({aten.topk.default, aten.argmax.default, aten.argmin.default, aten.sort.stable})
"""Operators that give places as torch counts them."""

_KEEP_PLACES = frozenset(
    {aten.reshape.default, aten.flatten.using_ints, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
    | {aten.unsqueeze.default, aten.permute.default, aten.expand.default, aten.slice.Tensor, aten.select.int}
    | {operator.getitem, aten._to_copy.default}
)


def _counts_from_front(places: fx.Node) -> bool:
    """Whether none of them is negative: found by another operator, counted, or made so before."""
    node: Any = places
    while isinstance(node, fx.Node) and node.target in _KEEP_PLACES:
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return False
    return node.target in _PLACES or (node.target is aten.where.self and _tests_sign(node.args[0]))


def _tests_sign(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.lt.Scalar and bool(node.args[1] == 0)


def _reduction(op: Call) -> str | None:
    """How elements and updates combine, by torch's name; None where updates replace elements."""
    name = op.attr_str("reduction", "none")
    if name != "none" and name not in _REDUCTIONS:
        op.refuse("the reduction is not known", expected=f"none, {', '.join(_REDUCTIONS)}", found=name)
    return _REDUCTIONS.get(name)


@rule("GatherElements", since=11)
def gather_elements(op: Call) -> Value:
    x = op.input(0)
    axis = op.axis(op.attr_int("axis", 0), op.rank(x))
    places = op.cast(op.input(1), torch.int64)
    return op.call(aten.gather.default, x, axis, from_front(op, places, op.size(x, axis)))


@rule("Scatter", since=9, until=10)
@rule("ScatterElements", since=11)
def scatter_elements(op: Call) -> Value:
    x, updates, how = op.input(0), op.input(2), _reduction(op)
    axis = op.axis(op.attr_int("axis", 0), op.rank(x))
    places = from_front(op, op.cast(op.input(1), torch.int64), op.size(x, axis))
    if how is None:
        return op.call(aten.scatter.src, x, axis, places, updates)
    return op.call(aten.scatter_reduce.two, x, axis, places, updates, how)


def _coordinates(op: Call, places: Value) -> list[Value]:
    """The last axis of places apart: a tensor of places an axis."""
    joined = _joined(op, places)
    if joined is not None:
        return joined
    count = op.size(places, -1)
    if not isinstance(count, int):
        op.refuse("the number of indexed axes changes", expected="a last axis of constant size", found=count)
    return [op.call(aten.select.int, places, -1, index) for index in range(count)]


def _joined(op: Call, places: Value) -> list[Value] | None:
    """The tensors of places that were stacked along a new last axis; None where that is not how they were made."""
    if not isinstance(places, fx.Node) or places.target is not aten.cat.default:
        return None
    last = op.rank(places) - 1
    parts: Any = places.args[0]
    if op.axis(int(str(places.args[1])) if len(places.args) > 1 else 0, last + 1) != last:
        return None
    if not all(isinstance(part, fx.Node) and part.target is aten.unsqueeze.default for part in parts):
        return None
    if any(part.args[1] % (last + 1) != last for part in parts):
        return None
    return [part.args[0] for part in parts]


@rule("GatherND", since=11)
def gather_nd(op: Call) -> Value:
    """Leading batch axes are indexed by their own numbers."""
    x, places = op.input(0), op.cast(op.input(1), torch.int64)
    batch, rank = op.attr_int("batch_dims", 0), op.rank(places) - 1
    numbers: list[Value] = []
    for axis in range(batch):
        along = op.call(aten.arange.default, op.size(x, axis))
        numbers.append(op.call(aten.reshape.default, along, [-1, *[1] * (rank - axis - 1)]))
    return op.call(aten.index.Tensor, x, [*numbers, *_coordinates(op, places)])


@rule("ScatterND", since=11)
def scatter_nd(op: Call) -> Value:
    x, updates, how = op.input(0), op.input(2), _reduction(op)
    coordinates = _coordinates(op, op.cast(op.input(1), torch.int64))
    if how in (None, "sum"):
        return op.call(aten.index_put.default, x, coordinates, updates, how == "sum")
    return _reduce_rows(op, x, coordinates, updates, str(how))


def _reduce_rows(op: Call, x: Value, coordinates: list[Value], updates: Value, how: str) -> Value:
    """The indexed axes as one, whose rows combine with the updates."""
    sizes, depth = op.shape(x), len(coordinates)
    row = from_front(op, coordinates[0], sizes[0])
    for coordinate, size in zip(coordinates[1:], sizes[1:depth], strict=True):
        row = op.call(aten.add.Tensor, op.call(aten.mul.Tensor, row, size), from_front(op, coordinate, size))
    rows = op.call(aten.reshape.default, x, [-1, *sizes[depth:]])
    changes = op.call(aten.reshape.default, updates, [-1, *sizes[depth:]])
    reduced = op.call(aten.index_reduce.default, rows, 0, op.call(aten.reshape.default, row, [-1]), changes, how)
    return op.call(aten.reshape.default, reduced, sizes)


@rule("TensorScatter", since=24)
def tensor_scatter(op: Call) -> Value:
    """Each sample's update written along an axis of its cache, from a place of its own on."""
    cache, update = op.input(0), op.input(1)
    rank = op.rank(cache)
    axis = op.axis(op.attr_int("axis", -2), rank)
    mode = op.attr_str("mode", "linear")
    if mode not in ("linear", "circular"):
        op.refuse("the mode is not known", expected="linear or circular", found=mode)
    places = op.call(aten.arange.default, op.size(update, axis))
    places = op.call(aten.reshape.default, places, [-1, *[1] * (rank - axis - 1)])
    if op.has(2):
        starts = op.call(aten.reshape.default, op.input(2), [-1, *[1] * (rank - 1)])
        places = op.call(aten.add.Tensor, starts, places)
    if mode == "circular":
        places = op.call(aten.remainder.Scalar, places, op.size(cache, axis))
    return op.call(aten.scatter.src, cache, axis, op.call(aten.expand.default, places, op.shape(update)), update)


@rule("Compress")
def compress(op: Call) -> Value:
    """What is kept must be known, as the size of the result depends on it."""
    x, places = op.input(0), op.known(1).nonzero().flatten()
    if op.has_attr("axis"):
        return op.call(aten.index_select.default, x, op.attr_int("axis"), Known(places))
    return op.call(aten.index_select.default, op.call(aten.reshape.default, x, [-1]), 0, Known(places))
