"""Tensors put together, taken apart, turned and repeated in roundabout ways.

What is written over all of a tensor, piece by piece, is cat; what is turned before it is joined is turned after.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx

from tersor.ir.shapes import KEY

from ..arguments import argument
from .rules import Context, Rule

aten = torch.ops.aten


def copied(context: Context, node: fx.Node) -> fx.Node | None:
    """What is copied over all of another tensor."""
    _, source = node.args[:2]
    if not isinstance(source, fx.Node) or source.meta[KEY].dtype is not node.meta[KEY].dtype:
        return None
    if context.same_type(source, node):
        return source
    sizes = context.shape(node)
    return context.instead(node, aten.expand.default, source, list(sizes)) if _all_numbers(sizes) else None


def pieces_as_cat(context: Context, node: fx.Node) -> fx.Node | None:
    """Pieces written along one axis, one after another, until all of it is written."""
    axis, size = _axis(node), context.shape(node)[_axis(node)]
    pieces: list[tuple[int, int, fx.Node]] = []
    at: Any = node
    while isinstance(size, int) and isinstance(at, fx.Node) and at.target is node.target and _axis(at) == axis:
        piece = _piece(context, at, size)
        if piece is None or (at is not node and len(at.users) > 1):
            return None
        pieces.append(piece)
        at = at.args[0]
        if _cover(pieces, size):
            return context.instead(node, aten.cat.default, [source for _, _, source in sorted(pieces)], axis)
    return None


def _axis(node: fx.Node) -> int:
    return int(argument(node, "dim")) % node.meta[KEY].dim() if node.target is aten.slice_scatter.default else 0


def _piece(context: Context, node: fx.Node, size: int) -> tuple[int, int, fx.Node] | None:
    """Where a piece starts and ends, and the piece; None where that is not known, or where it leaves gaps."""
    if node.target is aten.slice_scatter.default:
        start, end, step = (argument(node, name) for name in ("start", "end", "step"))
        source: Any = node.args[1]
        start, end = 0 if start is None else start, sys.maxsize if end is None else end
        if step != 1 or not isinstance(start, int) or not isinstance(end, int) or start < 0 or end < 0:
            return None
        return start, min(end, size), source
    return _rows(context, node)


def _rows(context: Context, node: fx.Node) -> tuple[int, int, fx.Node] | None:
    """Consecutive rows that index_put replaces."""
    places, values = argument(node, "indices"), argument(node, "values")
    index = context.tensor(places[0]) if len(places) == 1 else None
    if index is None or index.dim() != 1 or index.dtype is torch.bool or argument(node, "accumulate"):
        return None
    start = int(index[0]) if index.numel() else -1
    rows = torch.arange(start, start + index.numel(), device=index.device)
    if start < 0 or not torch.equal(index, rows) or context.shape(values)[:1] != (index.numel(),):
        return None
    return start, start + index.numel(), values


def _cover(pieces: list[tuple[int, int, fx.Node]], size: int) -> bool:
    ends = 0
    for start, end, _ in sorted(pieces, key=lambda piece: piece[:2]):
        if start != ends or end <= start:
            return False
        ends = end
    return ends == size


def function_of_joined(context: Context, node: fx.Node) -> fx.Node | None:
    """Angles of which each part had its sine or cosine taken, joined: the sine or cosine of the angles joined."""
    parts: Any = node.args[0]
    targets = {part.target for part in parts}
    if len(targets) > 1 or not targets <= {aten.cos.default, aten.sin.default}:
        return None
    if any(len(part.users) > 1 or part.meta[KEY].dtype is not part.args[0].meta[KEY].dtype for part in parts):
        return None
    joined = context.call(node, aten.cat.default, [part.args[0] for part in parts], *node.args[1:])
    return context.instead(node, targets.pop(), joined)


def permuted_cat(context: Context, node: fx.Node) -> fx.Node | None:
    """A permutation of tensors joined that were permuted the same way before: joined along the axis that it was."""
    joined: Any = node.args[0]
    if joined.target is not aten.cat.default or len(joined.users) > 1:
        return None
    order, parts = _order(node), joined.args[0]
    inner = _order(parts[0])
    if inner is None or order is None or [inner[axis] for axis in order] != list(range(len(order))):
        return None
    if any(_order(part) != inner for part in parts):
        return None
    axis = inner[argument(joined, "dim") % len(order)]
    return context.instead(node, aten.cat.default, [part.args[0] for part in parts], axis)


def _order(node: fx.Node) -> list[int] | None:
    if node.target is not aten.permute.default:
        return None
    axes: Any = argument(node, "dims")
    return [axis % len(axes) for axis in axes]


def turned_matrices(context: Context, node: fx.Node) -> fx.Node | None:
    """Matrices turned while their leading axes were one: turned with the axes as they are.

    reshape(permute(x, [0, 2, 1]), [a, b, m, n])    ->    permute(reshape(x, [a, b, n, m]), [0, 1, 3, 2])
    """
    turned: Any = node.args[0]
    if _order(turned) != [0, 2, 1] or len(turned.users) > 1:
        return None
    sizes, (_, rows, columns) = context.shape(node), context.shape(turned)
    wanted = list(argument(node, "shape"))
    if len(sizes) < 3 or sizes[-2:] != (rows, columns) or len(wanted) != len(sizes):
        return None
    straight = context.call(node, aten.reshape.default, turned.args[0], [*wanted[:-2], wanted[-1], wanted[-2]])
    order = list(range(len(sizes)))
    return context.instead(node, aten.permute.default, straight, [*order[:-2], order[-1], order[-2]])


def linear_of_rows(context: Context, node: fx.Node) -> fx.Node | None:
    """A linear on rows: leading axes made one before it and several after it, as before.

    reshape(linear(reshape(x, [-1, k]), w), [a, b, n])    ->    linear(x, w)
    """
    linear: Any = node.args[0]
    if linear.target is not aten.linear.default or len(linear.users) > 1:
        return None
    rows, *others = linear.args
    if rows.target is not aten.reshape.default or linear.kwargs:
        return None
    source = rows.args[0]
    if context.shape(source)[-1:] != context.shape(rows)[-1:] or context.shape(source)[:-1] != context.shape(node)[:-1]:
        return None
    return context.instead(node, aten.linear.default, source, *others)


def only_item(context: Context, node: fx.Node) -> fx.Node | None:
    """The one item along an axis that was just added."""
    source: Any = node.args[0]
    if source.target is not aten.unsqueeze.default:
        return None
    rank = source.meta[KEY].dim()
    added, picked = int(source.args[1]) % rank, int(argument(node, "dim")) % rank
    original = source.args[0]
    return original if added == picked and context.same_type(original, node) else None


def repeated_items(context: Context, node: fx.Node) -> fx.Node | None:
    """Each item along an axis several times in a row: a new axis after it, expanded, and the two as one."""
    source, times, axis = (argument(node, name) for name in ("self", "repeats", "dim"))
    sizes = context.shape(source)
    if axis is None or type(times) is not int or not _all_numbers(sizes):
        return None
    axis %= len(sizes)
    wide = context.call(node, aten.unsqueeze.default, source, axis + 1)
    many = context.call(node, aten.expand.default, wide, [*sizes[: axis + 1], times, *sizes[axis + 1 :]])
    return context.instead(node, aten.reshape.default, many, list(context.shape(node)))


def _all_numbers(sizes: tuple[int | str, ...]) -> bool:
    return all(isinstance(size, int) for size in sizes)


TABLE: tuple[tuple[str, Rule, tuple[Any, ...]], ...] = (
    ("copies removed", copied, (aten.copy.default,)),
    ("pieces joined", pieces_as_cat, (aten.slice_scatter.default, aten.index_put.default)),
    ("functions of parts", function_of_joined, (aten.cat.default,)),
    ("permutations merged", permuted_cat, (aten.permute.default,)),
    ("permutations merged", turned_matrices, (aten.reshape.default,)),
    ("linears taken off rows", linear_of_rows, (aten.reshape.default,)),
    ("views of everything removed", only_item, (aten.select.int,)),
    ("repeats written as expand", repeated_items, (aten.repeat_interleave.self_int,)),
)
