"""Rules for operators that move values without changing them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from .builder import Builder, Value
from .heads import joined_again, note_parted, note_turned
from .registry import Refusal, rule

aten = torch.ops.aten
END = 2**63 - 1
"""What Slice takes as the end of a dimension, whatever its size."""


# -- shapes ----------------------------------------------------------------------------------------------------------


@rule(aten.reshape.default)
def reshape(b: Builder, x: Value, shape: Sequence[Any]) -> str:
    """A constant shape wherever sizes that change are copied from the input (0) or are the only one left (-1)."""
    joined = joined_again(b, x, b.result.shape)
    if joined is not None:
        return joined
    sizes = [0 if _copied(b, x, axis, size) else size for axis, size in enumerate(shape)]
    unknown = [axis for axis, size in enumerate(sizes) if isinstance(size, Value)]
    if 0 in shape:
        return b.move("Reshape", x, b.sizes(shape), allowzero=1)
    if len(unknown) == 1 and -1 not in sizes:
        sizes[unknown[0]] = -1
    return note_parted(b, x, b.move("Reshape", x, b.sizes(sizes)))


def _copied(b: Builder, x: Value, axis: int, size: Any) -> bool:
    return isinstance(size, Value) and axis < x.rank and b.same_size(size, x.shape[axis])


@rule(aten.flatten.using_ints)
def flatten(b: Builder, x: Value, start: int, end: int) -> str:
    if x.rank == 0:
        return b.move("Reshape", x, b.ints(1))
    first, last = start % x.rank, end % x.rank
    return _regroup(b, x, first, b.ints(-1), last + 1)


@rule(aten.unflatten.int)
def unflatten(b: Builder, x: Value, dim: int, sizes: Sequence[Any]) -> str:
    axis = dim % x.rank
    return _regroup(b, x, axis, b.sizes(sizes), axis + 1)


def _regroup(b: Builder, x: Value, start: int, middle: str, end: int) -> str:
    """Reshape to the sizes before `start`, then `middle`, then the sizes from `end` on."""
    before = [b.ints(*[0] * start)] if start else []
    after = [b.shape(x, end, x.rank)] if end < x.rank else []
    shape = b.op("Concat", *before, middle, *after, axis=0) if before or after else middle
    return b.move("Reshape", x, shape)


@rule(aten.unsqueeze.default)
def unsqueeze(b: Builder, x: Value, dim: int) -> str:
    return b.move("Unsqueeze", x, b.ints(dim % (x.rank + 1)))


@rule(aten.squeeze.default)
def squeeze_all(b: Builder, x: Value) -> str:
    return squeeze(b, x, range(x.rank))


@rule(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(b: Builder, x: Value, dim: int | Sequence[int]) -> str:
    dims = [dim] if isinstance(dim, int) else dim
    ones = [d % x.rank for d in dims if x.rank and isinstance(x.shape[d], int) and x.shape[d] == 1]
    return b.move("Squeeze", x, b.ints(*ones)) if ones else x


@rule(aten.expand.default)
def expand(b: Builder, x: Value, sizes: Sequence[Any]) -> str:
    """Where ATen keeps a size by -1, ONNX does by 1."""
    added = len(sizes) - x.rank
    kept = [axis >= added and _kept(b, x.shape[axis - added], size) for axis, size in enumerate(sizes)]
    if all(kept):
        return x
    return b.move("Expand", x, b.sizes([1 if keep else size for keep, size in zip(kept, sizes, strict=True)]))


def _kept(b: Builder, size: Any, wanted: Any) -> bool:
    return (isinstance(wanted, int) and wanted == -1) or b.same_size(size, wanted)


@rule(aten.expand_as.default)
def expand_as(b: Builder, x: Value, other: Value) -> str:
    return b.move("Expand", x, b.shape(other))


@rule(aten.repeat.default)
def repeat(b: Builder, x: Value, repeats: Sequence[Any]) -> str:
    added = len(repeats) - x.rank
    source = b.move("Unsqueeze", x, b.ints(*range(added))) if added else x
    return b.move("Tile", source, b.sizes(repeats))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(b: Builder, x: Value, repeats: Any, dim: int | None) -> str:
    axis = 0 if dim is None else dim % x.rank
    source: str = b.move("Reshape", x, b.ints(-1)) if dim is None else x
    rank = 1 if dim is None else x.rank
    spread = b.move("Unsqueeze", source, b.ints(axis + 1))
    sizes: list[Any] = [1] * (rank + 1)
    sizes[axis + 1] = repeats
    spread = b.move("Expand", spread, b.sizes(sizes))
    lead = [b.ints(*[0] * axis)] if axis else []
    rest = [b.shape(source, axis + 1, rank)] if axis + 1 < rank else []
    shape = b.op("Concat", *lead, b.ints(-1), *rest, axis=0)
    return b.move("Reshape", spread, shape)


# -- order of dimensions ---------------------------------------------------------------------------------------------


@rule(aten.permute.default)
def permute(b: Builder, x: Value, dims: Sequence[int]) -> str:
    return _transposed(b, x, [d % x.rank for d in dims])


def _transposed(b: Builder, x: Value, perm: Sequence[int]) -> str:
    return note_turned(b, x, b.move("Transpose", x, perm=list(perm)), perm)


@rule(aten.transpose.int)
def transpose(b: Builder, x: Value, first: int, second: int) -> str:
    perm = list(range(x.rank))
    perm[first], perm[second] = perm[second], perm[first]
    return _transposed(b, x, perm)


@rule(aten.t.default, aten.numpy_T.default)
def t(b: Builder, x: Value) -> str:
    return b.move("Transpose", x, perm=list(reversed(range(x.rank))))


@rule(aten.movedim.int)
def movedim(b: Builder, x: Value, source: int, destination: int) -> str:
    perm = [d for d in range(x.rank) if d != source % x.rank]
    perm.insert(destination % x.rank, source % x.rank)
    return b.move("Transpose", x, perm=perm)


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(b: Builder, x: Value, factor: int) -> str:
    return b.move("DepthToSpace", x, blocksize=factor, mode="CRD")


@rule(aten.unfold.default)
def unfold(b: Builder, x: Value, dim: int, size: int, step: int) -> str:
    """Windows along a dimension, their places last."""
    axis = dim % x.rank
    length = x.shape[axis]
    if not isinstance(length, int):
        raise Refusal("takes windows of a dimension whose size changes from call to call", "trace with a fixed size")
    places = torch.arange(0, length - size + 1, step)[:, None] + torch.arange(size)
    windows = b.op("Gather", x, b.constant(places), axis=axis)
    order = [*range(axis + 1), *range(axis + 2, x.rank + 1), axis + 1]
    return windows if order[-1] == axis + 1 == x.rank else b.op("Transpose", windows, perm=order)


@rule(aten.flip.default)
def flip(b: Builder, x: Value, dims: Sequence[int]) -> str:
    count = len(dims)
    ends = [-END] * count
    return b.move("Slice", x, b.ints(*[-1] * count), b.ints(*ends), b.ints(*dims), b.ints(*[-1] * count))


@rule(aten.roll.default)
def roll(b: Builder, x: Value, shifts: Sequence[int], dims: Sequence[int]) -> str:
    flat = not dims
    result: str = b.op("Reshape", x, b.ints(-1)) if flat else x
    for shift, dim in zip(shifts, [0] if flat else dims, strict=True):
        if shift:  # the last `shift` values come first; a negative shift takes from the start
            tail = _cut(b, result, dim, -shift, END)
            result = b.op("Concat", tail, _cut(b, result, dim, 0, -shift), axis=dim)
    return b.op("Reshape", result, b.shape(x)) if flat else result


# -- parts -----------------------------------------------------------------------------------------------------------


@rule(aten.slice.Tensor)
def slice_(b: Builder, x: Value, dim: int, start: Any, end: Any, step: int) -> str:
    size = x.shape[dim]
    whole = end is None or (isinstance(end, int) and (end == END or (isinstance(size, int) and end >= size)))
    if step == 1 and whole and start in (None, 0) and not isinstance(start, Value):
        return x
    return _cut(b, x, dim, start, end, step)


def _cut(b: Builder, x: str, dim: int, start: Any, end: Any, step: int = 1) -> str:
    low, high = (0 if start is None else start), (END if end is None else end)
    steps = None if step == 1 else b.ints(step)
    return b.move("Slice", x, b.sizes([low]), b.sizes([high]), b.ints(dim), steps)


@rule(aten.select.int)
def select(b: Builder, x: Value, dim: int, index: Any) -> str:
    return b.move("Gather", x, b.operand(index, torch.int64), axis=dim)


@rule(aten.split_with_sizes.default)
def split_with_sizes(b: Builder, x: Value, sizes: Sequence[Any], dim: int) -> tuple[str, ...]:
    parts = b.op_many("Split", len(sizes), x, b.sizes(sizes), axis=dim)
    return tuple(b.stay(x, part) for part in parts)


@rule(aten.split.Tensor, aten.chunk.default)
def split(b: Builder, x: Value, size: Any, dim: int) -> tuple[str, ...]:
    """The sizes of the parts are those of the results; where they change from call to call, each part is a slice."""
    parts = [part.shape[dim] for part in b.result.fake]
    if all(isinstance(part, int) for part in parts):
        return split_with_sizes(b, x, parts, dim)
    step = parts[0]
    if not isinstance(step, int):
        raise _unequal_parts()
    return tuple(_cut(b, x, dim, i * step, END if i == len(parts) - 1 else (i + 1) * step) for i in range(len(parts)))


def _unequal_parts() -> Exception:
    from .registry import Refusal

    return Refusal("splits a dynamic dimension into a number of parts", "split by sizes, or slice")


@rule(aten.unbind.int)
def unbind(b: Builder, x: Value, dim: int) -> tuple[str, ...]:
    count = len(b.result.fake)
    return tuple(b.move("Gather", x, b.number(index, torch.int64), axis=dim) for index in range(count))


@rule(operator.getitem)
def getitem(b: Builder, parts: Sequence[str], index: int) -> str:
    return parts[index]


# -- joins -----------------------------------------------------------------------------------------------------------


@rule(aten.cat.default)
def cat(b: Builder, tensors: Sequence[Value], dim: int) -> str:
    dtype = b.result.dtype
    parts = [b.cast(x, dtype) for x in tensors if not _is_empty(x)]
    return parts[0] if len(parts) == 1 else b.stay(parts[0], b.op("Concat", *parts, axis=dim))


def _is_empty(x: Value) -> bool:
    """ATen skips a tensor of shape [0] whatever the others are."""
    return x.rank == 1 and isinstance(x.shape[0], int) and x.shape[0] == 0


@rule(aten.stack.default)
def stack(b: Builder, tensors: Sequence[Value], dim: int) -> str:
    axis = b.ints(dim % b.result.rank)
    dtype = b.result.dtype
    parts = [b.move("Unsqueeze", b.cast(x, dtype), axis) for x in tensors]
    return b.stay(parts[0], b.op("Concat", *parts, axis=dim))
