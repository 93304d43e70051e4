"""All constants of a model in one aligned block of bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pack import round_up

ALIGNMENT = 64


@dataclass
class Blob:
    """Bytes with a place for each constant; equal constants share one."""

    chunks: list[bytes] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)
    size: int = 0

    def add(self, values: NDArray[Any]) -> int:
        """Where the values stand, little-endian, on a cache line of their own."""
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        if data not in self.places:
            self.places[data] = self.size
            padded = data.ljust(round_up(max(len(data), 1), ALIGNMENT), b"\0")
            self.chunks.append(padded)
            self.size += len(padded)
        return self.places[data]

    def to_bytes(self) -> bytes:
        """Everything, in order."""
        return b"".join(self.chunks)
