"""Values as views of buffers: operators that move data are followed, and cost nothing until a kernel needs a copy."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from tersor.ir.integer_operators import INT_RESIZE_NEAREST
from tersor.passes.arguments import PADS, padded_with

from .layout import Layout, Offsets

aten = torch.ops.aten
Elements = NDArray[np.int64]

_FILL = -1
"""What stands for a value that is no element of a buffer: _FILL - (value + 128)."""


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory. Its elements are numbered from `base` on, in row-major order of `shape`.

    offsets: the byte offset of each element, int64[shape]. fill: what its border holds. data: what a constant holds,
    int8[shape]; it lies among the weights and not in the arena.
    """

    name: str
    base: int
    shape: tuple[int, ...]
    layout: Layout
    offsets: Offsets
    fill: int = 0
    data: NDArray[np.int8] | None = None

    @property
    def count(self) -> int:
        """How many elements it has."""
        return int(np.prod(self.shape, dtype=np.int64))

    def view(self) -> Elements:
        """All of it, in order."""
        return self.base + np.arange(self.count, dtype=np.int64).reshape(self.shape)


def to_planes(shape: Sequence[int], channel_axis: int | None) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """How a tensor is seen as channels, rows and width: the order of its axes, and the three sizes.

    `channel_axis` None is row-major: one channel, one row. Otherwise rows are the last but one of the other axes and
    what stands before it, width is the last: [1, C, H, W] with axis 1 is (C, H, W), [1, T, F] with axis 2 is (F, 1, T).
    """
    rank = len(shape)
    if channel_axis is None:
        return tuple(range(rank)), (1, 1, int(np.prod(shape, dtype=np.int64)))
    others = [axis for axis in range(rank) if axis != channel_axis]
    width = shape[others[-1]] if others else 1
    rows = int(np.prod([shape[axis] for axis in others[:-1]], dtype=np.int64))
    return (channel_axis, *others), (shape[channel_axis], rows, width)


def logical_offsets(layout: Layout, shape: Sequence[int], channel_axis: int | None) -> Offsets:
    """The offset of each element of a tensor of that shape, int64[shape]."""
    order, _ = to_planes(shape, channel_axis)
    ordered = layout.offsets().reshape([shape[axis] for axis in order])
    return np.ascontiguousarray(np.transpose(ordered, np.argsort(order)))


def fill(value: int) -> int:
    """The element that stands for a constant."""
    return _FILL - (value + 128)


def filled_with(elements: Elements) -> Elements:
    """The constants that stand at elements below zero."""
    return _FILL - elements - 128


def moved(node: fx.Node, read: Callable[[fx.Node], Any]) -> Any:
    """The elements that a movement gives, from those of its inputs: the operator itself, run on their numbers."""
    given: tuple[Any, Any] = fx.node.map_arg((node.args, node.kwargs), lambda n: _tensors(read(n)))
    args, kwargs = given
    if node.target is INT_RESIZE_NEAREST:
        x, size, scales = args
        result = aten.upsample_nearest2d.default(x.double(), size, *(scales or (None, None)))
    elif node.target in PADS:
        result = aten.constant_pad_nd.default(args[0], args[1], fill(int(padded_with(node) or 0)))
    else:
        result = node.target(*args, **kwargs)  # type: ignore[operator]  # support.py: an operator of MOVEMENTS
    if isinstance(result, Tensor):
        return result.to(torch.int64).numpy()
    return [part.to(torch.int64).numpy() for part in result]


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    return [_tensors(part) for part in value] if isinstance(value, list) else value


MOVEMENTS = frozenset(
    {
        operator.getitem,
        INT_RESIZE_NEAREST,
        aten.cat.default,
        aten.channel_shuffle.default,
        aten.chunk.default,
        aten.clone.default,
        aten.constant_pad_nd.default,
        aten.contiguous.default,
        aten.expand.default,
        aten.flatten.using_ints,
        aten.flip.default,
        aten.gather.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.pad.default,
        aten.permute.default,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        aten.reshape.default,
        aten.roll.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.stack.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.unflatten.int,
        aten.unsqueeze.default,
    }
)
"""Operators that only say where each value comes from."""


CHOICES = {aten.index_select.default: 2, aten.gather.default: 2, aten.index.Tensor: 1}
"""Those that are told by a tensor which values to take, and where among their arguments it stands."""

CASTS = frozenset({aten._to_copy.default, aten.to.dtype})
"""Operators that give the same numbers in another type of integers."""


@dataclass(frozen=True)
class Run:
    """Bytes that lie one after another in both: `length` of them, from `source` to `target`."""

    target: int
    source: int
    length: int


def runs(targets: Offsets, sources: Offsets) -> list[Run]:
    """The fewest runs that copy each source offset to its target offset."""
    order = np.argsort(targets, axis=None, kind="stable")
    to, origin = targets.reshape(-1)[order], sources.reshape(-1)[order]
    if not to.size:
        return []
    breaks = np.flatnonzero((np.diff(to) != 1) | (np.diff(origin) != 1)) + 1
    begins = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([begins, [to.size]]))
    return [Run(int(to[b]), int(origin[b]), int(n)) for b, n in zip(begins, lengths, strict=True)]
