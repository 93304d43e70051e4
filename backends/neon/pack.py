"""Weights, biases and offsets in the form that the C kernels read; kernels/tersor_kernels.h says what that form is.

Everything here is numpy. Weights are int8 `[out, in, kh, kw]`, in one group: a grouped convolution is a sparse one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]

GROUP = 8  # TERSOR_GROUP
SLACK = 64  # TERSOR_SLACK
MAGIC_BITS = 0x4B400000  # TERSOR_MAGIC_BITS


@dataclass(frozen=True)
class DenseLayout:
    """How a dense kernel packs: output channels together, input channels of a block, and the order of those rows."""

    rows: int
    block: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class SparseLayout:
    """How a sparse kernel packs: a block is `rows` output channels by `block` input channels, its rows in `order`."""

    rows: int
    block: int
    order: tuple[int, ...]
    paired: bool = False


DENSE = {
    "dense_neon": DenseLayout(4, 4, (0, 1, 2, 3)),
    "dense_dotprod": DenseLayout(8, 4, (0, 1, 2, 3, 4, 5, 6, 7)),
    "dense_i8mm": DenseLayout(8, 8, (0, 4, 1, 5, 2, 6, 3, 7)),
}
SPARSE = {
    "1x4": SparseLayout(1, 4, (0,), paired=True),
    "2x4": SparseLayout(2, 4, (0, 1)),
    "4x4": SparseLayout(4, 4, (0, 1, 2, 3)),
    "2x8": SparseLayout(2, 8, (0, 1)),
    "4x8": SparseLayout(4, 8, (0, 2, 1, 3)),
}


@dataclass(frozen=True)
class SparseWeights:
    """A stream of blocks; where each group of 8 channels begins in it; how many blocks each row group has."""

    stream: Int8
    group_starts: Int32
    block_counts: Int32


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pad_channels(values: NDArray[np.generic], multiple: int = GROUP) -> NDArray[np.generic]:
    """Zeros behind one value a channel, to whole groups: biases and scales."""
    return np.pad(values, (0, round_up(len(values), multiple) - len(values)))


def fold_bias(bias: Int32, weight: Int8, zero_point: int, *, magic: bool = False) -> Int32:
    """The bias of a kernel, to whole groups: what padding with the zero point adds to each sum is taken off.

    Raises:
        OverflowError: where a folded bias is no int32.
    """
    sums = weight.astype(np.int64).reshape(len(weight), -1).sum(1)
    folded = pad_channels(bias.astype(np.int64) - zero_point * sums).astype(np.int64) + (MAGIC_BITS if magic else 0)
    if np.abs(folded).max(initial=0) > np.iinfo(np.int32).max:
        raise OverflowError("a bias with the zero point's share folded in does not fit int32")
    return folded.astype(np.int32)


def tap_offsets(
    kernel: tuple[int, int], dilation: tuple[int, int], stride: tuple[int, int], plane: tuple[int, int], block: int
) -> Int32:
    """The byte offset of every tap from the first pixel of a window, row by row over the kernel.

    `plane` is the height and width of the input's plane, with its border. A stride above 1 reads a plane that was split
    into phases (`tersor_split_phases`): stride[0] * stride[1] planes of `phase_plane(plane, stride)`, one by one.
    """
    height, width = phase_plane(plane, stride)
    y, x = (np.arange(size, dtype=np.int64) * step for size, step in zip(kernel, dilation, strict=True))
    phase = (y % stride[0])[:, None] * stride[1] + x % stride[1]
    pixel = (y // stride[0])[:, None] * width + x // stride[1]
    return ((phase * height * width + pixel) * block).reshape(-1).astype(np.int32)


def phase_plane(plane: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Height and width of each phase of a plane: what is left of it at every stride-th pixel, rounded up."""
    return -(-plane[0] // stride[0]), -(-plane[1] // stride[1])


def _blocked(weight: Int8, rows: int, block: int) -> Int8:
    """`[out, in, kh, kw]` -> `[out / rows, taps, in / block, rows, block]`, zeros where it does not divide."""
    out, channels = weight.shape[:2]
    padded = np.zeros((round_up(out, rows), round_up(channels, block), *weight.shape[2:]), np.int8)
    padded[:out, :channels] = weight
    split = padded.reshape(len(padded) // rows, rows, padded.shape[1] // block, block, -1)
    blocked: Int8 = split.transpose(0, 4, 2, 1, 3)
    return blocked


def pack_dense(weight: Int8, layout: DenseLayout) -> Int8:
    """The weights of a dense kernel, one after another."""
    blocks = _blocked(weight, layout.rows, layout.block)[..., list(layout.order), :]
    flat = np.ascontiguousarray(blocks).reshape(-1)
    if layout.block < GROUP == layout.rows and 0 < len(weight) % GROUP <= layout.block:
        # The last group has one block of output channels: its other rows are not stored.
        last = blocks[-1][:, :, : layout.block]
        flat = np.concatenate([blocks[:-1].reshape(-1), last.reshape(-1)])
    return flat


def pack_depthwise(weight: Int8, block: int) -> Int8:
    """The weights `[channels, 1, kh, kw]` of a depthwise kernel: `[channels / block, taps, block]`."""
    channels = len(weight)
    padded = np.zeros((round_up(channels, block), weight[0].size), np.int8)
    padded[:channels] = weight.reshape(channels, -1)
    return np.ascontiguousarray(padded.reshape(-1, block, padded.shape[1]).transpose(0, 2, 1)).reshape(-1)


def pack_sparse(weight: Int8, layout: SparseLayout, taps: Int32, x_block: int) -> SparseWeights:
    """The stream of a sparse kernel: every block that is not all zero.

    `taps` are the byte offsets of the kernel's taps, `x_block` the bytes from one input block to the next.
    """
    blocks = _blocked(weight, layout.rows, layout.block)[..., list(layout.order), :]
    offsets = taps.astype(np.int64)[:, None] + np.arange(blocks.shape[2]) * x_block
    if offsets.max(initial=0) > np.iinfo(np.int32).max:
        raise OverflowError("an offset into the input does not fit int32")
    row, tap, column = np.nonzero(blocks.any(axis=(3, 4)))
    rows = round_up(len(weight), GROUP) // layout.rows
    counts = np.bincount(row, minlength=rows)
    weights = np.ascontiguousarray(blocks[row, tap, column]).reshape(len(row), layout.rows * layout.block)
    words = np.column_stack([offsets[tap, column].astype("<i4"), weights.view("<i4")])
    starts = np.concatenate([[0], np.cumsum(counts)])[: -1 : GROUP // layout.rows] * (4 * words.shape[1])
    stream = _pair(words, row, counts) if layout.paired else words
    return SparseWeights(stream.reshape(-1).view(np.int8), starts.astype(np.int32), counts.astype(np.int32))


def _pair(words: NDArray[np.int32], row: NDArray[np.intp], counts: NDArray[np.intp]) -> NDArray[np.int32]:
    """Offset and weights of each block -> both offsets of a pair, then the weights of both."""
    first = (np.cumsum(counts) - counts)[row]
    place = np.arange(len(row)) - first
    alone = (place % 2 == 0) & (place + 1 == counts[row])
    offset = 2 * (first + place // 2 * 2) + place % 2
    paired = np.empty(2 * len(words), "<i4")
    paired[offset] = words[:, 0]
    paired[offset + np.where(alone, 1, 2)] = words[:, 1]
    return paired
