"""Rules for operators that rank, count and accumulate along an axis."""

from __future__ import annotations

from typing import Any

import torch

from ..call import Call
from ..registry import Function, add_rule, rule
from ..values import Known, Size, Value
from .elementwise import from_order, ordered
from .scattering import from_front

aten = torch.ops.aten


@rule("TopK", until=9)
def top_k_of_attribute(op: Call) -> list[Value]:
    return _top_k(op, op.attr_int("k"))


@rule("TopK", since=10)
def top_k(op: Call) -> list[Value]:
    return _top_k(op, op.sizes(1)[0])


def _top_k(op: Call, count: Size) -> list[Value]:
    x = op.input(0)
    largest, in_order = bool(op.attr_int("largest", 1)), bool(op.attr_int("sorted", 1))
    axis = op.attr_int("axis", -1)
    values, places = op.call_several(aten.topk.default, ordered(op, x), count, axis, largest, in_order)
    return [from_order(op, values, op.dtype(x)), places]


def _extreme_place(target: Any) -> Function:
    def place(op: Call) -> Value:
        x = op.input(0)
        axis, keep = op.axis(op.attr_int("axis", 0), op.rank(x)), bool(op.attr_int("keepdims", 1))
        if not op.attr_int("select_last_index", 0):
            return op.call(target, ordered(op, x), axis, keep)
        backwards = op.call(target, op.call(aten.flip.default, ordered(op, x), [axis]), axis, keep)
        last = op.importer.size(_less_one, op.size(x, axis))
        return op.call(aten.add.Tensor, op.call(aten.neg.default, backwards), last)

    return place


def _less_one(size: int) -> int:
    return size - 1


add_rule("ArgMax", _extreme_place(aten.argmax.default))
add_rule("ArgMin", _extreme_place(aten.argmin.default))


def _accumulate(target: Any, neutral: int) -> Function:
    def accumulate(op: Call) -> Value:
        """Exclusive means: of the elements before, which shifts them by one place."""
        x, backwards = op.input(0), op.attr_int("reverse", 0)
        axis = op.axis(op.ints(1)[0], op.rank(x))
        values = op.call(aten.flip.default, x, [axis]) if backwards else x
        if op.attr_int("exclusive", 0):
            shift = [*[0, 0] * (op.rank(x) - axis - 1), 1, -1]
            values = op.call(aten.pad.default, values, shift, "constant", neutral)
        result = op.cast(op.call(target, values, axis), op.dtype(x))
        return op.call(aten.flip.default, result, [axis]) if backwards else result

    return accumulate


add_rule("CumSum", _accumulate(aten.cumsum.default, 0))
add_rule("CumProd", _accumulate(aten.cumprod.default, 1))


@rule("NonZero")
def non_zero(op: Call) -> Value:
    """Of something known, as the size of the result depends on it."""
    return Known(op.known(0).nonzero().t().contiguous())


@rule("Unique", since=11)
def unique(op: Call) -> list[Value | None]:
    """Of something known: values, where each first stands, which each element is, and how often each stands there."""
    x = op.known(0)
    axis = op.axis(op.attr_int("axis"), x.dim()) if op.has_attr("axis") else None
    source, along = (x.flatten(), 0) if axis is None else (x, axis)
    _, inverse, counts = torch.unique(source, dim=along, return_inverse=True, return_counts=True)
    first = torch.full_like(counts, source.shape[along]).scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")
    if not op.attr_int("sorted", 1):
        order = first.argsort()
        first, counts, inverse = first[order], counts[order], order.argsort()[inverse]
    return [Known(tensor) for tensor in (source.index_select(along, first), first, inverse, counts)]


@rule("OneHot", since=9)
def one_hot(op: Call) -> Value:
    """The second of two values where an index is, the first elsewhere; an index out of range is nowhere."""
    places, values = op.cast(op.input(0), torch.int64), op.input(2)
    depth = int(op.known(1).item()) if op.dtype(op.input(1)).is_floating_point else op.sizes(1)[0]
    rank = op.rank(places) + 1
    axis = op.axis(op.attr_int("axis", -1), rank)
    classes = op.call(aten.reshape.default, op.call(aten.arange.default, depth), [-1, *[1] * (rank - axis - 1)])
    here = op.call(aten.eq.Tensor, op.call(aten.unsqueeze.default, from_front(op, places, depth), axis), classes)
    off, on = (op.call(aten.select.int, values, 0, index) for index in (0, 1))
    return op.call(aten.where.self, here, on, off)


@rule("Trilu", since=14)
def trilu(op: Call) -> Value:
    target = aten.triu.default if op.attr_int("upper", 1) else aten.tril.default
    return op.call(target, op.input(0), op.ints(1)[0] if op.has(1) else 0)


@rule("EyeLike", since=9)
def eye_like(op: Call) -> Value:
    """Ones on a diagonal: what a lower and an upper triangle of ones have in common."""
    x, diagonal = op.input(0), op.attr_int("k", 0)
    dtype = op.attr_dtype("dtype") if op.has_attr("dtype") else op.dtype(x)
    ones = op.call(aten.full.default, op.shape(x), 1, dtype=dtype)
    return op.call(aten.triu.default, op.call(aten.tril.default, ones, diagonal), diagonal)


@rule("ReverseSequence", since=10)
def reverse_sequence(op: Call) -> Value:
    """Each sample's first so many steps backwards, the others where they are."""
    x, rank = op.input(0), op.rank(op.input(0))
    time, batch = op.attr_int("time_axis", 0), op.attr_int("batch_axis", 1)
    if sorted((time, batch)) != [0, 1]:
        op.refuse("time and batch are the first two axes", expected="0 and 1", found=f"{time} and {batch}")
    ends = [1] * (rank - 2)
    steps = op.call(
        aten.reshape.default, op.call(aten.arange.default, op.size(x, time)), [*[1] * time, -1, *ends, *[1] * batch]
    )
    lengths = op.call(aten.reshape.default, op.input(1), [*[1] * batch, -1, *ends, *[1] * time])
    mirrored = op.call(aten.sub.Tensor, op.call(aten.sub.Tensor, lengths, 1), steps)
    places = op.call(aten.where.self, op.call(aten.lt.Tensor, steps, lengths), mirrored, steps)
    return op.call(aten.gather.default, x, time, op.call(aten.expand.default, places, op.shape(x)))


@rule("Einsum", since=12)
def einsum(op: Call) -> Value:
    return op.call(aten.einsum.default, op.attr_str("equation").replace(" ", ""), op.inputs)
