"""Operators that ATen, exporters and models spell in several ways: the one spelling that Canonicalize leaves.

Permutations are permute, matrix products matmul, parts of a tensor split_with_sizes, logic on booleans logical_*,
means over images adaptive_avg_pool2d; what is written over all of a tensor, piece by piece, is cat.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx

from tersor.ir.shapes import KEY

from ..arguments import argument
from .recover_attention import filled
from .rules import Context, Rule

aten = torch.ops.aten

_TURNED = frozenset({aten.t.default, aten.numpy_T.default, aten.mT.default})
_LOGIC = {
    aten.__and__.Tensor: aten.logical_and.default,
    aten.bitwise_and.Tensor: aten.logical_and.default,
    aten.__or__.Tensor: aten.logical_or.default,
    aten.bitwise_or.Tensor: aten.logical_or.default,
    aten.__xor__.Tensor: aten.logical_xor.default,
    aten.bitwise_xor.Tensor: aten.logical_xor.default,
    aten.bitwise_not.default: aten.logical_not.default,
}
_OPPOSITE = {
    aten.eq.Scalar: aten.ne.Scalar,
    aten.ne.Scalar: aten.eq.Scalar,
    aten.eq.Tensor: aten.ne.Tensor,
    aten.ne.Tensor: aten.eq.Tensor,
}


def as_permute(context: Context, node: fx.Node) -> fx.Node | None:
    """A transposition, as the permutation of all axes that it is."""
    source: Any = node.args[0]
    order = list(range(node.meta[KEY].dim()))
    if len(order) < 2:
        return source if isinstance(source, fx.Node) else None
    first, second = (argument(node, "dim0"), argument(node, "dim1")) if node.target is aten.transpose.int else (-1, -2)
    order[first], order[second] = order[second], order[first]
    node.target, node.args, node.kwargs = aten.permute.default, (source, order), {}
    return node


def as_matmul(context: Context, node: fx.Node) -> fx.Node | None:
    """A product of matrices, or of as many matrices, as matmul."""
    node.target = aten.matmul.default
    return node


def as_logical(context: Context, node: fx.Node) -> fx.Node | None:
    """A bitwise operation on booleans."""
    if any(source.meta[KEY].dtype is not torch.bool for source in node.all_input_nodes):
        return None
    if len(node.all_input_nodes) < len(set(node.args)) or node.meta[KEY].dtype is not torch.bool:
        return None
    target: Any = node.target
    node.target = _LOGIC[target]
    return node


def as_comparison(context: Context, node: fx.Node) -> fx.Node | None:
    """Not equal, and not unequal, in one."""
    source: Any = node.args[0]
    if source.target not in _OPPOSITE or len(source.users) > 1:
        return None
    return context.instead(node, _OPPOSITE[source.target], *source.args)


def as_arange(context: Context, node: fx.Node) -> fx.Node | None:
    """A range that starts at zero and counts one by one."""
    if argument(node, "start") != 0 or (node.target is aten.arange.start_step and argument(node, "step") != 1):
        return None
    return context.instead(node, aten.arange.default, argument(node, "end"), **node.kwargs)


def as_split_with_sizes(context: Context, node: fx.Node) -> fx.Node | None:
    """Parts of equal size, by their sizes; none of which changes from call to call."""
    axis = argument(node, "dim")
    sizes = [part.shape[axis] for part in node.meta[KEY]]
    if not all(type(size) is int for size in sizes):
        return None
    node.target, node.args, node.kwargs = aten.split_with_sizes.default, (node.args[0], sizes, axis), {}
    return node


def as_global_pool(context: Context, node: fx.Node) -> fx.Node | None:
    """A mean over both axes of images that keeps the axes."""
    source: Any = node.args[0]
    axes = sorted(axis % 4 for axis in argument(node, "dim") or ())
    if source.meta[KEY].dim() != 4 or axes != [2, 3] or not argument(node, "keepdim"):
        return None
    return context.instead(node, aten.adaptive_avg_pool2d.default, source, [1, 1])


def as_fill(context: Context, node: fx.Node) -> fx.Node | None:
    """A choice between a tensor and a number: masked_fill, or the overload that takes the number."""
    fill = filled(context, node)
    if fill is None or fill.source.meta[KEY].dtype is not node.meta[KEY].dtype:
        return None
    number = fill.number if node.meta[KEY].dtype.is_floating_point else int(fill.number)
    if fill.where:
        return context.instead(node, aten.masked_fill.Scalar, fill.source, fill.condition, number)
    if node.target is aten.where.ScalarOther:
        return None
    return context.instead(node, aten.where.ScalarOther, fill.condition, fill.source, number)


def uniform_scatter(context: Context, node: fx.Node) -> fx.Node | None:
    """Scattering a constant whose items are all the same."""
    source, axis, index, values = node.args
    known = context.tensor(values)
    if known is None or known.numel() == 0 or not bool((known == known.flatten()[0]).all()):
        return None
    return context.instead(node, aten.scatter.value, source, axis, index, known.flatten()[0].item())


def counted_from_front(context: Context, node: fx.Node) -> fx.Node | None:
    """where(i < 0, i + n, i) of places that are never negative."""
    test, _, places = node.args
    if not isinstance(places, fx.Node) or not isinstance(test, fx.Node) or test.target is not aten.lt.Scalar:
        return None
    asked = test.args[0] is places and test.args[1] == 0
    return places if asked and _are_places(context, places) and context.same_type(places, node) else None


def _are_places(context: Context, node: fx.Node) -> bool:
    """Whether a node holds places that an operator found, or some of a constant that are not negative."""
    source: Any = node.args[0] if node.args else None
    known = context.tensor(node)
    if known is not None:
        return bool((known >= 0).all())
    if node.target in _PICK:
        return _are_places(context, source)
    if node.target in (aten.argmax.default, aten.argmin.default):
        return True
    return bool(isinstance(source, fx.Node) and source.target in _GIVE_PLACES and node.args[1] == 1)


_PICK = frozenset({aten.slice.Tensor, aten.expand.default, aten.unsqueeze.default, aten.reshape.default})
_GIVE_PLACES = frozenset({aten.topk.default, aten.sort.default, aten.sort.stable, aten.max.dim, aten.min.dim})


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
    ("transpositions written as permutations", as_permute, (aten.transpose.int, *sorted(_TURNED, key=str))),
    ("products written as matmul", as_matmul, (aten.mm.default, aten.bmm.default)),
    ("logic on booleans", as_logical, tuple(_LOGIC)),
    ("comparisons turned", as_comparison, (aten.logical_not.default,)),
    ("ranges from zero", as_arange, (aten.arange.start, aten.arange.start_step)),
    ("splits written by sizes", as_split_with_sizes, (aten.split.Tensor, aten.chunk.default)),
    ("means of images written as pooling", as_global_pool, (aten.mean.dim,)),
    ("places counted from the front", counted_from_front, (aten.where.self,)),
    ("choices of numbers", as_fill, (aten.where.self, aten.where.ScalarSelf)),
    ("uniform scatters", uniform_scatter, (aten.scatter.src,)),
    ("copies removed", copied, (aten.copy.default,)),
    ("pieces joined", pieces_as_cat, (aten.slice_scatter.default, aten.index_put.default)),
    ("functions of parts", function_of_joined, (aten.cat.default,)),
    ("permutations merged", permuted_cat, (aten.permute.default,)),
    ("permutations merged", turned_matrices, (aten.reshape.default,)),
    ("linears taken off rows", linear_of_rows, (aten.reshape.default,)),
    ("views of everything removed", only_item, (aten.select.int,)),
    ("repeats written as expand", repeated_items, (aten.repeat_interleave.self_int,)),
)
