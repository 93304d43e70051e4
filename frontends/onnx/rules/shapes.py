"""Rules for operators that change or ask for sizes, and leave the order of the elements."""

from __future__ import annotations

import torch

from ..call import Call
from ..registry import rule
from ..shape_arithmetic import make_sizes
from ..values import Size, Value
from .quantization import on_stored

aten = torch.ops.aten


@rule("Shape")
def shape(op: Call) -> Value:
    sizes = op.shape(op.input(0))
    start, end = op.attr_int("start", 0), op.attr_int("end", len(sizes))
    sizes = sizes[slice(start, end)]
    return make_sizes(sizes, [len(sizes)])


@rule("Size")
def size(op: Call) -> Value:
    return make_sizes([op.importer.product(op.shape(op.input(0)))], [])


@rule("Reshape")
@on_stored
def reshape(op: Call) -> Value:
    """A 0 keeps the input's size, unless `allowzero` says that it is meant."""
    x, sizes = op.input(0), op.sizes(1)
    if not op.attr_int("allowzero", 0):
        sizes = [op.size(x, axis) if item == 0 else item for axis, item in enumerate(sizes)]
    return op.call(aten.reshape.default, x, sizes)


@rule("Flatten")
@on_stored
def flatten(op: Call) -> Value:
    """To a matrix: what is before the axis, and what is after."""
    x = op.input(0)
    rank, axis = op.rank(x), op.attr_int("axis", 1)
    axis = axis + rank if axis < 0 else axis
    sizes = op.shape(x)
    return op.call(aten.reshape.default, x, [op.importer.product(sizes[:axis]), op.importer.product(sizes[axis:])])


def _axes(op: Call, since: int) -> list[int] | None:
    """The axes, an attribute in old opsets and an input since; None where they are not given."""
    if op.opset >= since:
        return op.ints(1) if op.has(1) else None
    return op.attr_ints("axes") if op.has_attr("axes") else None


@rule("Squeeze")
@on_stored
def squeeze(op: Call) -> Value:
    x, axes = op.input(0), _axes(op, 13)
    if axes is None:
        return op.call(aten.squeeze.default, x)
    return op.call(aten.squeeze.dim, x, axes[0]) if len(axes) == 1 else op.call(aten.squeeze.dims, x, axes)


@rule("Unsqueeze")
@on_stored
def unsqueeze(op: Call) -> Value:
    x, axes = op.input(0), _axes(op, 13) or []
    rank = op.rank(x) + len(axes)
    for axis in sorted(op.axis(axis, rank) for axis in axes):
        x = op.call(aten.unsqueeze.default, x, axis)
    return x


@rule("Expand")
@on_stored
def expand(op: Call) -> Value:
    """Both ways: a size of 1 in the request keeps the input's."""
    x, wanted = op.input(0), op.sizes(1)
    own = op.shape(x)
    ones: list[Size] = [1] * abs(len(own) - len(wanted))
    own, wanted = (own, ones + wanted) if len(own) > len(wanted) else (ones + own, wanted)
    sizes = [have if ask == 1 or _is_large(have) else ask for have, ask in zip(own, wanted, strict=True)]
    return op.call(aten.expand.default, x, sizes)


def _is_large(size: Size) -> bool:
    """Whether it is a number other than 1, which nothing can change."""
    return isinstance(size, int) and size != 1
