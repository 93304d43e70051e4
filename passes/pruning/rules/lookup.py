"""Operators that look values up by index.

Indices that come from choosing along an axis (topk, argmax) point into that axis: a router's choice of experts. A
lookup by them ties what is looked up to the axis, so that experts go with the router's outputs. A lookup by any other
index keeps the whole dimension, since the index may be anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...arguments import argument
from ..axes import Axis, concat
from ..flow import Axes, CannotFollowError, Flow, Kind, Rule
from .movement import bounds

aten = torch.ops.aten


def _look_up(flow: Flow, axis: Axis, index: object) -> None:
    """Tie the dimension that is looked up to what the index points into, or keep it."""
    target = flow.indices.get(index) if isinstance(index, fx.Node) else None
    if target is None or target.size != axis.size:
        flow.pin([axis], "looked up by an index that may be anything")
        if target is not None:
            flow.pin([target], "its indices are used on another dimension")
        return
    flow.mark(axis, Kind.EXPERTS)
    flow.same(axis, target)


def topk(flow: Flow, node: fx.Node) -> Any:
    """topk(x, k, dim): the result's dimension is new; its indices point into x's."""
    axes = list(flow.of(node.args[0]))
    dim, count = argument(node, "dim"), argument(node, "k")
    if not isinstance(count, int):
        raise CannotFollowError("k changes from call to call")
    flow.at_least(axes[dim], count, node)
    flow.indices[node] = axes[dim]
    axes[dim] = flow.pinned(count, "the largest in order", dim)
    return (tuple(axes),) * 2


def embedding(flow: Flow, node: fx.Node) -> Axes:
    """embedding(weight [rows, width], indices)."""
    rows, width = flow.of(node.args[0])
    _look_up(flow, rows, node.args[1])
    return (*flow.of(node.args[1]), width)


def index(flow: Flow, node: fx.Node) -> Axes:
    """x[i, j, ..]: the dimensions indexed give way to those of the indices, in place where they are neighbours."""
    axes, given = flow.of(node.args[0]), list(argument(node, "indices"))
    places = [dim for dim, value in enumerate(given) if value is not None]
    operands = [flow.of(given[dim]) for dim in places]
    if any(given[dim].meta["val"].dtype in (torch.bool, torch.uint8) for dim in places):
        raise CannotFollowError("indexed by a mask")
    for dim in places:
        _look_up(flow, axes[dim], given[dim])
    found = flow.broadcast(operands)
    rest = [axis for dim, axis in enumerate(axes) if dim not in places]
    neighbours = places == list(range(places[0], places[-1] + 1))
    at = places[0] if neighbours else 0
    return (*rest[:at], *found, *rest[at:])


def index_select(flow: Flow, node: fx.Node) -> Axes:
    """index_select(x, dim, index)."""
    axes = list(flow.of(node.args[0]))
    dim = argument(node, "dim")
    _look_up(flow, axes[dim], argument(node, "index"))
    axes[dim] = flow.of(argument(node, "index"))[0]
    return tuple(axes)


def _tie_others(flow: Flow, axes: Axes, others: Axes, dim: int) -> None:
    """Where an index runs along all other dimensions, they are the same; where it stops short, they stay."""
    for place, (ours, theirs) in enumerate(zip(axes, others, strict=True)):
        if place == dim:
            continue
        if ours.size == theirs.size:
            flow.same(ours, theirs)
        else:
            flow.pin([ours, theirs], "an index runs along a part of it")


def gather(flow: Flow, node: fx.Node) -> Axes:
    """gather(x, dim, index): the result has the index's dimensions."""
    axes, indices = flow.of(node.args[0]), flow.of(argument(node, "index"))
    dim = argument(node, "dim") % len(axes)
    _look_up(flow, axes[dim], argument(node, "index"))
    _tie_others(flow, axes, indices, dim)
    return indices


def scatter(flow: Flow, node: fx.Node) -> Axes:
    """scatter(x, dim, index, values): x with values written where the index points."""
    axes, indices = flow.of(node.args[0]), flow.of(argument(node, "index"))
    dim = argument(node, "dim") % len(axes)
    _look_up(flow, axes[dim], argument(node, "index"))
    _tie_others(flow, axes, indices, dim)
    source = node.args[3] if len(node.args) > 3 else None
    if isinstance(source, fx.Node):
        for ours, theirs in zip(indices, flow.of(source), strict=True):
            (flow.same(ours, theirs) if ours.size == theirs.size else flow.pin([ours, theirs], "written in part"))
    return axes


def one_hot(flow: Flow, node: fx.Node) -> Axes:
    """one_hot(x, classes): a new dimension that x points into."""
    count = flow.shape(node)[-1]
    target = flow.indices.get(node.args[0])  # type: ignore[arg-type]  # a tensor
    axis = target if target is not None and target.size == count else flow.pinned(count, "classes")
    if axis is target:
        flow.sized(node, "num_classes", axis)
    return (*flow.of(node.args[0]), axis)


def slice_scatter(flow: Flow, node: fx.Node) -> Axes:
    """slice_scatter(x, src, dim, start, end): a segment of x is replaced by src."""
    axes, source = list(flow.of(node.args[0])), flow.of(node.args[1])
    dim, start = argument(node, "dim") % len(axes), argument(node, "start")
    for place, (ours, theirs) in enumerate(zip(axes, source, strict=True)):
        if place != dim:
            flow.same(ours, theirs)
    axis, begin = axes[dim], 0 if start is None else start
    if argument(node, "step") != 1 or not isinstance(begin, int):
        raise CannotFollowError("written in steps")
    before, rest = flow.axes.cut(axis, begin + (axis.size if begin < 0 else 0))
    inside, after = flow.axes.cut(rest, source[dim].size)
    flow.same(inside, source[dim])
    flow.change(node, (axis,), bounds(before, inside if after.size else None))
    axes[dim] = concat([before, inside, after])
    return tuple(axes)


def copy(flow: Flow, node: fx.Node) -> Axes:
    """copy(x, values): the values, in x's sizes."""
    return flow.broadcast([flow.of(node.args[0]), flow.of(node.args[1])])


READS_INDEX = frozenset(
    {aten.embedding.default, aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.one_hot.default}
    | {aten.scatter.src, aten.scatter.value, aten.scatter_add.default}
)
"""Operators that take a tensor of indices and know what it points into."""

TABLE: dict[Any, Rule] = {
    aten.topk.default: topk,
    aten.embedding.default: embedding,
    aten.index.Tensor: index,
    aten.index_select.default: index_select,
    aten.gather.default: gather,
    aten.scatter.src: scatter,
    aten.scatter.value: scatter,
    aten.scatter_add.default: scatter,
    aten.one_hot.default: one_hot,
    aten.slice_scatter.default: slice_scatter,
    aten.copy.default: copy,
}
