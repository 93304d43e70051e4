"""Rules for operators that move, join, part and repeat elements."""

from __future__ import annotations

import numpy as np
import torch

from ..call import Call
from ..registry import rule
from ..values import Known, Value
from .linear import transposed

aten = torch.ops.aten


@rule("Transpose")
def transpose(op: Call) -> Value:
    x = op.input(0)
    order = op.attr_ints("perm", list(range(op.rank(x)))[::-1])
    known = op.importer.known(x)
    turned = transposed(op, known) if known is not None and order == [1, 0] else None
    if turned is not None:
        return turned
    return op.call(aten.permute.default, x, order)


@rule("Concat")
def concat(op: Call) -> Value:
    return op.call(aten.cat.default, op.inputs, op.attr_int("axis"))


@rule("Split")
def split(op: Call) -> list[Value]:
    """By given sizes, or into equal parts of which the last may be smaller."""
    x, axis = op.input(0), op.attr_int("axis", 0)
    if op.opset >= 13 and op.has(1):
        sizes = list(op.sizes(1))
    elif op.has_attr("split"):
        sizes = list(op.attr_ints("split"))
    else:
        size = op.size(x, axis)
        if not isinstance(size, int):
            op.refuse("equal parts of an axis whose size changes", hint="state the sizes of the parts")
        parts = op.attr_int("num_outputs", len(op.proto.output))
        part = -(-size // max(parts, 1))
        sizes = [min(part, size - part * index) for index in range(parts)]
    return op.call_several(aten.split_with_sizes.default, x, sizes, axis)


@rule("Tile")
def tile(op: Call) -> Value:
    return op.call(aten.repeat.default, op.input(0), op.sizes(1))


@rule("Pad", until=10)
def pad_by_attributes(op: Call) -> Value:
    x = op.input(0)
    return _pad(op, x, op.attr_ints("pads"), list(range(op.rank(x))), op.attr_float("value", 0.0))


@rule("Pad", since=11)
def pad(op: Call) -> Value:
    x = op.input(0)
    rank = op.rank(x)
    axes = [op.axis(axis, rank) for axis in op.ints(3)] if op.has(3) else list(range(rank))
    return _pad(op, x, op.ints(1), axes, op.known(2).item() if op.has(2) else 0.0)


def _pad(op: Call, x: Value, amounts: list[int], axes: list[int], value: float) -> Value:
    if len(amounts) != 2 * len(axes):
        op.refuse("pads do not fit the axes", expected=f"{2 * len(axes)} numbers", found=amounts)
    pairs = {axis: (amounts[i], amounts[i + len(axes)]) for i, axis in enumerate(axes)}
    mode = op.attr_str("mode", "constant")
    if mode != "constant":
        return _pad_from_inside(op, x, pairs, mode)
    flat = [amount for axis in range(op.rank(x))[::-1] for amount in pairs.get(axis, (0, 0))]
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return op.call(aten.pad.default, x, flat, "constant", value) if flat else x


def _pad_from_inside(op: Call, x: Value, pairs: dict[int, tuple[int, int]], mode: str) -> Value:
    """Padding with the tensor's own values: numpy says which, by the same names."""
    if mode not in ("reflect", "edge", "wrap"):
        op.refuse("the mode is not known", expected="constant, reflect, edge or wrap", found=mode)
    for axis, (before, after) in pairs.items():
        size = op.size(x, axis)
        if before == after == 0:
            continue
        if not isinstance(size, int):
            op.refuse(f"padding by {mode} along an axis whose size changes", found=f"axis {axis}")
        places = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
        places = np.pad(places, (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]  # checked
        x = op.call(aten.index_select.default, x, axis, Known(torch.from_numpy(places.copy())))
    return x
