"""Operators that ATen, exporters and models spell in several ways: the one spelling that Canonicalize leaves.

Permutations are permute, matrix products matmul, parts of a tensor split_with_sizes, logic on booleans logical_*,
means over images adaptive_avg_pool2d. Tensors put together are in pieces.py.
"""

from __future__ import annotations

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
)
