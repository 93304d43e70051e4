"""All constants of a model in one aligned block of bytes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pack import round_up

ALIGNMENT = 64

HEAD = 64
"""Bytes before the first constant: a name, the size and a checksum, by which a library knows its weights."""

_NAME = b"tersor1\0"
_FORMAT = "<8sQII"


@dataclass
class Blob:
    """Bytes with a place for each constant; equal constants share one.

    taken: the bytes of each constant that was asked for since this was last emptied, by its place.
    """

    chunks: list[bytes] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    size: int = HEAD

    def add(self, values: NDArray[Any]) -> int:
        """Where the values stand, little-endian, on a cache line of their own."""
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        if data not in self.places:
            self.places[data] = self.size
            padded = data.ljust(round_up(max(len(data), 1), ALIGNMENT), b"\0")
            self.chunks.append(padded)
            self.size += len(padded)
        self.taken[self.places[data]] = round_up(max(len(data), 1), ALIGNMENT)
        return self.places[data]

    @property
    def checksum(self) -> int:
        """The CRC-32 of all that follows it: what fills up the head, and the constants."""
        total = zlib.crc32(bytes(HEAD - struct.calcsize(_FORMAT)))
        for chunk in self.chunks:
            total = zlib.crc32(chunk, total)
        return total

    def to_bytes(self) -> bytes:
        """Everything, in order, behind its head."""
        head = struct.pack(_FORMAT, _NAME, self.size, self.checksum, 0)
        return b"".join([head.ljust(HEAD, b"\0"), *self.chunks])
