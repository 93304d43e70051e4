"""Rules for sequences of tensors whose length is known at import."""

from __future__ import annotations

import torch

from ..call import Call
from ..registry import rule
from ..values import Known, Value

aten = torch.ops.aten


def _items(op: Call, index: int) -> tuple[Value, ...]:
    value = op.input(index)
    if not isinstance(value, tuple):
        op.refuse(f"input {index} is a tensor", expected="a sequence")
    return value


def _place(op: Call, index: int, count: int, *, end: bool = False) -> int:
    """A place among so many items; with `end` also the place after them."""
    place = int(op.known(index).item())
    if not -count <= place < count + end:
        op.refuse("the position is outside of the sequence", expected=f"less than {count + end}", found=place)
    return place % (count + end) if place >= 0 else place + count


@rule("SequenceEmpty", since=11)
def sequence_empty(op: Call) -> Value:
    return ()


@rule("SequenceConstruct", since=11)
def sequence_construct(op: Call) -> Value:
    return tuple(op.inputs)


@rule("SequenceAt", since=11)
def sequence_at(op: Call) -> Value:
    items = _items(op, 0)
    return items[_place(op, 1, len(items))]


@rule("SequenceInsert", since=11)
def sequence_insert(op: Call) -> Value:
    """The new item at the end where no position is given."""
    items = _items(op, 0)
    place = _place(op, 2, len(items), end=True) if op.has(2) else len(items)
    return (*items[:place], op.input(1), *items[place:])


@rule("SequenceErase", since=11)
def sequence_erase(op: Call) -> Value:
    """Without the item at a position, or without the last."""
    items = _items(op, 0)
    place = _place(op, 1, len(items)) if op.has(1) else len(items) - 1
    return items[:place] + items[place + 1 :]


@rule("SequenceLength", since=11)
def sequence_length(op: Call) -> Value:
    return Known(torch.tensor(len(_items(op, 0))))


@rule("ConcatFromSequence", since=11)
def concat_from_sequence(op: Call) -> Value:
    joined = aten.stack.default if op.attr_int("new_axis", 0) else aten.cat.default
    return op.call(joined, list(_items(op, 0)), op.attr_int("axis"))


@rule("SplitToSequence", since=11)
def split_to_sequence(op: Call) -> Value:
    """By a size, of which the last part may be smaller, by sizes, or into single items."""
    x, axis = op.input(0), op.attr_int("axis", 0)
    size = op.size(x, axis)
    if not op.has(1):
        if not isinstance(size, int):
            op.refuse("single items of an axis whose size changes", hint="state the sizes of the parts")
        parts = op.call_several(aten.split_with_sizes.default, x, [1] * size, axis)
        return tuple(parts if op.attr_int("keepdims", 1) else [op.call(aten.squeeze.dim, p, axis) for p in parts])
    if op.rank(op.input(1)):
        return tuple(op.call_several(aten.split_with_sizes.default, x, op.sizes(1), axis))
    return tuple(op.call_several(aten.split.Tensor, x, int(op.known(1).item()), axis))


@rule("Optional", "OptionalGetElement", since=15)
def optional(op: Call) -> Value:
    """What is there stands for itself."""
    if not op.has(0):
        op.refuse("an optional value that is not there", expected="one that is")
    return op.input(0)


@rule("OptionalHasElement", since=15)
def optional_has_element(op: Call) -> Value:
    return Known(torch.tensor(op.has(0)))
