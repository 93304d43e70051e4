"""Operators that move values without computing: permutations, reshapes, stretching, and taking apart and together."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ...arguments import argument, set_argument
from ..axes import Axis, concat, product
from ..flow import Action, Axes, CannotFollowError, Flow, Rule, SizeOf

aten = torch.ops.aten

# -- order and size-1 dimensions -------------------------------------------------------------------------------------


def permute(flow: Flow, node: fx.Node) -> Axes:
    """permute(x, dims)."""
    axes = flow.of(node.args[0])
    return tuple(axes[dim] for dim in argument(node, "dims"))


def transpose(flow: Flow, node: fx.Node) -> Axes:
    """transpose(x, dim0, dim1)."""
    axes = list(flow.of(node.args[0]))
    first, second = argument(node, "dim0"), argument(node, "dim1")
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def turned(flow: Flow, node: fx.Node) -> Axes:
    """t(x), x.T: all dimensions in reverse."""
    return tuple(reversed(flow.of(node.args[0])))


def turned_matrix(flow: Flow, node: fx.Node) -> Axes:
    """x.mT: the last two exchanged."""
    *batch, rows, columns = flow.of(node.args[0])
    return (*batch, columns, rows)


def movedim(flow: Flow, node: fx.Node) -> Axes:
    """movedim(x, source, destination), numbers or lists of them."""
    axes = flow.of(node.args[0])
    rank = len(axes)
    source, destination = (
        [value % rank for value in ([given] if isinstance(given, int) else given)]
        for given in (argument(node, "source"), argument(node, "destination"))
    )
    placed = dict(zip(destination, source, strict=True))
    others = iter(dim for dim in range(rank) if dim not in source)
    return tuple(axes[placed[dim] if dim in placed else next(others)] for dim in range(rank))


def regroup(flow: Flow, node: fx.Node) -> Axes:
    """Operators whose sizes follow from their input: squeeze, unsqueeze, flatten, unsafe views."""
    return flow.regroup(flow.of(node.args[0]), flow.shape(node))


def reshape(flow: Flow, node: fx.Node) -> Axes:
    """reshape(x, shape): the sizes written there follow the axes."""
    result = regroup(flow, node)
    flow.sized(node, list(_names(node))[1], result)
    return result


def unflatten(flow: Flow, node: fx.Node) -> Axes:
    """unflatten(x, dim, sizes)."""
    result = regroup(flow, node)
    dim = argument(node, "dim") % len(flow.of(node.args[0]))
    flow.sized(node, "sizes", result[dim : dim + len(argument(node, "sizes"))])
    return result


def _names(node: fx.Node) -> list[str]:
    return [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]  # an operator


# -- stretching ------------------------------------------------------------------------------------------------------


def expand(flow: Flow, node: fx.Node) -> Axes:
    """expand(x, sizes): a dimension of size 1 becomes an axis that holds one value over and over."""
    axes, shape = flow.of(node.args[0]), flow.shape(node)
    padded = (*(flow.fresh(1) for _ in range(len(shape) - len(axes))), *axes)
    result = tuple(
        axis if axis.size == size else flow.fresh(size, dim)
        for dim, (axis, size) in enumerate(zip(padded, shape, strict=True))
    )
    flow.sized(node, list(_names(node))[1], result)
    return result


def expand_as(flow: Flow, node: fx.Node) -> Axes:
    """expand_as(x, other)."""
    return flow.broadcast([flow.of(node.args[0]), flow.of(node.args[1])])


def repeat(flow: Flow, node: fx.Node) -> Axes:
    """repeat(x, repeats): each dimension over and over, the repetition outermost."""
    axes, shape = flow.of(node.args[0]), flow.shape(node)
    padded = [*(flow.fresh(1) for _ in range(len(shape) - len(axes))), *axes]
    times = [flow.fresh(size // axis.size, dim) for dim, (axis, size) in enumerate(zip(padded, shape, strict=True))]
    flow.sized(node, list(_names(node))[1], times)
    return tuple(product([count, axis]) for count, axis in zip(times, padded, strict=True))


def repeat_interleave(flow: Flow, node: fx.Node) -> Axes:
    """repeat_interleave(x, repeats, dim): each index some times in a row."""
    axes, dim = list(flow.of(node.args[0])), argument(node, "dim")
    if dim is None:
        axes, dim = [product(axes)], 0
    times = flow.fresh(flow.shape(node)[dim] // axes[dim].size, dim)
    flow.sized(node, "repeats", times)
    axes[dim] = product([axes[dim], times])
    return tuple(axes)


# -- taking together -------------------------------------------------------------------------------------------------


def cat(flow: Flow, node: fx.Node) -> Axes:
    """cat(tensors, dim): segments one after another; the other dimensions agree."""
    tensors: Any = argument(node, "tensors")
    operands = [axes for axes in map(flow.of, tensors) if not (len(axes) == 1 and axes[0].size == 0)]
    dim = argument(node, "dim") % len(operands[0])
    for other in operands[1:]:
        for place, (left, right) in enumerate(zip(operands[0], other, strict=True)):
            if place != dim:
                flow.same(left, right)
    result = list(operands[0])
    result[dim] = concat([axes[dim] for axes in operands])
    return tuple(result)


def stack(flow: Flow, node: fx.Node) -> Axes:
    """stack(tensors, dim): a new dimension, whose indices are operands and stay."""
    tensors: Any = argument(node, "tensors")
    result = list(flow.broadcast([flow.of(tensor) for tensor in tensors]))
    dim = argument(node, "dim") % (len(result) + 1)
    result.insert(dim, flow.pinned(len(tensors), "each index is an operand", dim))
    return tuple(result)


def pad(flow: Flow, node: fx.Node) -> Axes:
    """pad(x, amounts, mode): with a constant, new segments on either side; else the dimension stays whole."""
    axes = list(flow.of(node.args[0]))
    amounts = list(argument(node, "pad"))
    constant = node.target is aten.constant_pad_nd.default or argument(node, "mode") == "constant"
    shape = flow.shape(node)
    for place in range(len(amounts) // 2):
        dim = len(axes) - 1 - place
        before, after = amounts[2 * place : 2 * place + 2]
        if before == after == 0 and isinstance(before, int):
            continue
        if not constant or not all(isinstance(n, int) and n >= 0 for n in (before, after)):
            flow.pin([axes[dim]], "padded with values of its own")
            axes[dim] = flow.pinned(shape[dim], "padded with values of its own", dim)
            continue
        sides = flow.fresh(before, f"{dim}_before"), flow.fresh(after, f"{dim}_after")
        for index, side in zip((2 * place, 2 * place + 1), sides, strict=True):
            flow.edits.append(SizeOf(node, "pad", side, index))
        axes[dim] = concat([sides[0], axes[dim], sides[1]])
    return tuple(axes)


# -- taking apart ----------------------------------------------------------------------------------------------------


def slice_(flow: Flow, node: fx.Node) -> Axes:
    """slice(x, dim, start, end, step): a segment; with a step, one index of each run where runs fit."""
    axes = list(flow.of(node.args[0]))
    dim, step = argument(node, "dim") % len(axes), argument(node, "step")
    axis, wanted = axes[dim], flow.shape(node)[dim]
    start, end = argument(node, "start"), argument(node, "end")
    if wanted == axis.size:
        _end_follows(flow, node, end, axis)
    elif not isinstance(start, int | None) or not isinstance(end, int | None):
        flow.pin([axis], "cut at a size that changes from call to call")
        axes[dim] = flow.pinned(wanted, "cut at a size that changes from call to call", dim)
    elif step != 1:
        axes[dim] = _strided(flow, node, axis, start or 0, wanted)
    else:
        begin = (start or 0) + (axis.size if (start or 0) < 0 else 0)
        before, rest = flow.axes.cut(axis, begin)
        axes[dim], after = flow.axes.cut(rest, wanted)
        flow.change(node, (axis,), bounds(before, axes[dim] if after.size else None))
    return tuple(axes)


def bounds(before: Axis, inside: Axis | None) -> Action:
    """Rewrite where a segment starts and, where something follows it, ends."""

    def action(program: Program, node: fx.Node, size: Callable[[Axis], int]) -> None:
        set_argument(node, "start", size(before))
        if inside is not None:
            set_argument(node, "end", size(before) + size(inside))

    return action


def _end_follows(flow: Flow, node: fx.Node, end: object, axis: Axis) -> None:
    if end == axis.size:
        flow.sized(node, "end", axis)


def _strided(flow: Flow, node: fx.Node, axis: Axis, start: int, wanted: int) -> Axis:
    step, end = argument(node, "step"), argument(node, "end")
    if axis.size % step or not 0 <= start < step or wanted != axis.size // step:
        flow.pin([axis], "taken in steps that do not fit")
        return flow.pinned(wanted, "taken in steps that do not fit")
    runs = flow.fresh(wanted)
    flow.axes.unify(axis, product([runs, flow.pinned(step, "taken in steps")]))
    _end_follows(flow, node, end, axis)
    return runs


def select(flow: Flow, node: fx.Node) -> Axes:
    """select(x, dim, index): the one index taken stays, and its place follows what goes before it."""
    axes = list(flow.of(node.args[0]))
    dim, index = argument(node, "dim") % len(axes), argument(node, "index")
    axis = axes.pop(dim)
    if not isinstance(index, int):
        flow.pin([axis], "an index is taken that changes from call to call")
        return tuple(axes)
    before, rest = flow.axes.cut(axis, index % axis.size)
    flow.axes.cut(rest, 1)
    if index != -1:
        flow.change(node, (axis,), lambda _, call, size: set_argument(call, "index", size(before)))
    return tuple(axes)


def unbind(flow: Flow, node: fx.Node) -> tuple[Axes, ...]:
    """unbind(x, dim): every index becomes a value of its own."""
    axes = list(flow.of(node.args[0]))
    axis = axes.pop(argument(node, "dim"))
    flow.pin([axis], "each index becomes a value of its own")
    return (tuple(axes),) * axis.size


def split(flow: Flow, node: fx.Node) -> tuple[Axes, ...]:
    """split, split_with_sizes, chunk, tensor_split: segments; the sizes are written out where they change."""
    axes = list(flow.of(node.args[0]))
    dim = argument(node, "dim") % len(axes)
    parts: list[Axis] = []
    rest = axes[dim]
    for value in node.meta[KEY]:
        part, rest = flow.axes.cut(rest, flow.sizes(value)[dim])
        parts.append(part)
    if node.target is aten.split_with_sizes.default:
        flow.sized(node, "split_sizes", parts)
    else:
        flow.change(node, parts, _write_out_sizes(dim, tuple(parts)))
    return tuple((*axes[:dim], part, *axes[dim + 1 :]) for part in parts)


def _write_out_sizes(dim: int, parts: Axes) -> Action:
    def action(program: Program, node: fx.Node, size: Callable[[Axis], int]) -> None:
        node.args = (node.args[0], [size(part) for part in parts], dim)
        node.kwargs = {}
        node.target = aten.split_with_sizes.default

    return action


def getitem(flow: Flow, node: fx.Node) -> Axes:
    """One of several results."""
    source, index = node.args
    values = flow.values.get(source) if isinstance(source, fx.Node) else None
    if not values or isinstance(values[0], Axis) or not isinstance(index, int):
        raise CannotFollowError("picked from what is no tuple of tensors")
    axes: Axes = values[index]
    return axes


def glu(flow: Flow, node: fx.Node) -> Axes:
    """glu(x, dim): one half times the sigmoid of the other."""
    axes = list(flow.of(node.args[0]))
    dim = argument(node, "dim")
    first, second = flow.axes.cut(axes[dim], axes[dim].size // 2)
    flow.same(first, second)
    axes[dim] = second
    return tuple(axes)


# -- blocks of pixels ------------------------------------------------------------------------------------------------


def pixel_shuffle(flow: Flow, node: fx.Node) -> Axes:
    """Channels [out * r * r] to pixels: whole output channels can go."""
    *batch, channels, height, width = flow.of(node.args[0])
    block = argument(node, "upscale_factor") ** 2
    out = flow.fresh(channels.size // block)
    flow.axes.unify(channels, product([out, flow.pinned(block, "become pixels")]))
    return (*batch, out, *_planes(flow, node, (height, width)))


def pixel_unshuffle(flow: Flow, node: fx.Node) -> Axes:
    """Pixels to channels [in * r * r]."""
    *batch, channels, height, width = flow.of(node.args[0])
    block = flow.pinned(argument(node, "downscale_factor") ** 2, "were pixels")
    return (*batch, product([channels, block]), *_planes(flow, node, (height, width)))


def _planes(flow: Flow, node: fx.Node, before: Sequence[Axis]) -> Axes:
    why = "spatial"
    flow.pin(before, why)
    return tuple(flow.pinned(size, why) for size in flow.shape(node)[-len(before) :])


def im2col(flow: Flow, node: fx.Node) -> Axes:
    """im2col(x, kernel): [.., C, H, W] to [.., C * kernel, positions]."""
    *batch, channels, height, width = flow.of(node.args[0])
    flow.pin((height, width), "spatial")
    window = flow.pinned(math.prod(argument(node, "kernel_size")), "become a window")
    return (*batch, product([channels, window]), flow.pinned(flow.shape(node)[-1], "spatial"))


def col2im(flow: Flow, node: fx.Node) -> Axes:
    """col2im(x, output size, kernel): [.., C * kernel, positions] to [.., C, H, W]."""
    *batch, columns, positions = flow.of(node.args[0])
    flow.pin([positions], "spatial")
    window = flow.pinned(math.prod(argument(node, "kernel_size")), "were a window")
    channels = flow.fresh(columns.size // window.size)
    flow.axes.unify(columns, product([channels, window]))
    return (*batch, channels, *(flow.pinned(size, "spatial") for size in flow.shape(node)[-2:]))


def reordered(name: str) -> Rule:
    """Dimensions whose order changes in place: they stay whole."""

    def rule(flow: Flow, node: fx.Node) -> Axes:
        axes = flow.of(node.args[0])
        dims = argument(node, name)
        dims = list(range(len(axes))) if not dims and dims != 0 else [dims] if isinstance(dims, int) else dims
        flow.pin([axes[dim] for dim in dims], "order matters")
        return axes

    return rule


def triangle(flow: Flow, node: fx.Node) -> Axes:
    """tril, triu: what is kept depends on the place in the last two dimensions."""
    axes = flow.of(node.args[0])
    flow.pin(axes[-2:], "order matters")
    return axes


# -- making ----------------------------------------------------------------------------------------------------------


def filled(place: str) -> Rule:
    """A tensor of one value, or of random values, in sizes that are written there."""

    def rule(flow: Flow, node: fx.Node) -> Axes:
        result = tuple(flow.fresh(size, dim) for dim, size in enumerate(flow.shape(node)))
        flow.sized(node, place, result)
        return result

    return rule


def counted(flow: Flow, node: fx.Node) -> Axes:
    """arange, eye, linspace: the values depend on the place."""
    return tuple(flow.pinned(size, "the values depend on the place", dim) for dim, size in enumerate(flow.shape(node)))


_REGROUPING = (
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.flatten.using_ints,
    aten.atleast_1d.default, aten.atleast_2d.default, aten.ravel.default,
)  # fmt: skip

MOVES: dict[Any, Rule] = {
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.swapaxes.default: transpose,
    aten.t.default: turned,
    aten.numpy_T.default: turned,
    aten.mT.default: turned_matrix,
    aten.movedim.int: movedim,
    aten.movedim.intlist: movedim,
    **dict.fromkeys(_REGROUPING, regroup),
    aten.reshape.default: reshape,
    aten.view.default: reshape,
    aten._unsafe_view.default: reshape,
    aten.unflatten.int: unflatten,
    aten.expand.default: expand,
    aten.expand_as.default: expand_as,
    aten.repeat.default: repeat,
    aten.tile.default: repeat,
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.cat.default: cat,
    aten.stack.default: stack,
    aten.slice.Tensor: slice_,
    aten.select.int: select,
    aten.unbind.int: unbind,
    aten.split.Tensor: split,
    aten.split.sizes: split,
    aten.split_with_sizes.default: split,
    aten.chunk.default: split,
    aten.tensor_split.sections: split,
    operator.getitem: getitem,
    aten.flip.default: reordered("dims"),
    aten.roll.default: reordered("dims"),
}
"""Operators that give the values they are given, so that indices into an axis stay indices into it."""

TABLE: dict[Any, Rule] = {
    **MOVES,
    aten.pad.default: pad,
    aten.constant_pad_nd.default: pad,
    aten.glu.default: glu,
    aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle,
    aten.im2col.default: im2col,
    aten.col2im.default: col2im,
    aten.tril.default: triangle,
    aten.triu.default: triangle,
    **dict.fromkeys(
        (aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format, aten.rand.default),
        filled("size"),
    ),
    aten.randn.default: filled("size"),
    **dict.fromkeys(
        (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default), filled("size")
    ),
    **dict.fromkeys(
        (
            aten.arange.default,
            aten.arange.start,
            aten.arange.start_step,
            aten.eye.default,
            aten.eye.m,
            aten.linspace.default,
        ),
        counted,
    ),
}
