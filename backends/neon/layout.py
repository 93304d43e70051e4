"""Where each value of a tensor stands in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pack import SLACK, round_up

Offsets = NDArray[np.int64]

_STORE = 16
"""Bytes that one instruction stores."""


@dataclass(frozen=True)
class Border:
    """Pixels around a plane, filled with the tensor's zero point: what convolutions that read it pad with."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def covers(self, other: Border) -> bool:
        """Whether this border is as wide on every side."""
        return all(own >= wanted for own, wanted in zip(_sides(self), _sides(other), strict=True))

    def union(self, other: Border) -> Border:
        """The least border that covers both."""
        return Border(*(max(pair) for pair in zip(_sides(self), _sides(other), strict=True)))

    def around(self, inner: Border) -> Border:
        """This border outside another."""
        return Border(*(sum(pair) for pair in zip(_sides(self), _sides(inner), strict=True)))


def _sides(border: Border) -> tuple[int, int, int, int]:
    return border.top, border.left, border.bottom, border.right


NO_BORDER = Border()


@dataclass(frozen=True)
class Layout:
    """A channel-blocked tensor: x[ceil(channels / block)][top + rows + bottom][left + width + right][block] of bytes.

    With a block of 1 and no border it is an ordinary row-major tensor [channels, rows, width].
    """

    channels: int
    rows: int
    width: int
    block: int
    border: Border = NO_BORDER

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.channels // self.block)

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and pixels a row, borders counted."""
        border = self.border
        return border.top + self.rows + border.bottom, border.left + self.width + border.right

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return self.plane[1] * self.block

    @property
    def block_bytes(self) -> int:
        """From one block of channels to the next."""
        return self.plane[0] * self.row_bytes

    @property
    def size(self) -> int:
        """All bytes, with the slack that kernels may read behind the last pixel, to a whole cache line."""
        return round_up(self.blocks * self.block_bytes + SLACK, 64)

    @property
    def first(self) -> int:
        """The byte offset of the first pixel inside the border."""
        return self.border.top * self.row_bytes + self.border.left * self.block

    @property
    def mostly_border(self) -> bool:
        """Whether filling all of it takes less than its border: a gap takes about three times what one store takes."""
        gaps = (self.rows - 1) * self.row_bytes + self.width * self.block
        stores = self.rows + -(-(self.block_bytes - gaps) // _STORE)
        return self.border != NO_BORDER and self.block_bytes <= 3 * stores * _STORE

    def offsets(self) -> Offsets:
        """The byte offset of every value, int64[channels, rows, width]."""
        channel = np.arange(self.channels, dtype=np.int64)
        outer = channel // self.block * self.block_bytes + channel % self.block
        row = np.arange(self.rows, dtype=np.int64) * self.row_bytes
        column = np.arange(self.width, dtype=np.int64) * self.block
        return self.first + outer[:, None, None] + row[:, None] + column


@dataclass(frozen=True)
class Affine:
    """Values that a kernel can walk: where they begin, and the bytes from block to block and from row to row."""

    first: int
    block_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, offsets: Offsets, block: int) -> Affine | None:
        """The walk over values at these offsets, int64[channels, rows, width]; None where they lie otherwise."""
        channels, rows, width = offsets.shape
        first = int(offsets[0, 0, 0])
        row_bytes = int(offsets[0, 1, 0]) - first if rows > 1 else width * block
        block_bytes = int(offsets[block, 0, 0]) - first if channels > block else rows * row_bytes
        channel = np.arange(channels, dtype=np.int64)
        walked = channel // block * block_bytes + channel % block
        walked = walked[:, None, None] + np.arange(rows)[:, None] * row_bytes + np.arange(width) * block
        return cls(first, block_bytes, row_bytes) if np.array_equal(walked + first, offsets) else None
