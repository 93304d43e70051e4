"""Where each buffer lies in the arena: buffers that are never alive together share bytes."""

from __future__ import annotations

from dataclasses import dataclass

from .plan import Plan
from .views import Buffer


@dataclass(frozen=True)
class Arena:
    """Byte offsets by the buffer's base, and how much it takes in all. Every offset is a multiple of 64."""

    offsets: dict[int, int]
    size: int

    def offset(self, buffer: Buffer) -> int:
        """Where a buffer begins."""
        return self.offsets[buffer.base]


@dataclass(frozen=True)
class _Lifetime:
    buffer: Buffer
    first: int
    last: int


def place(plan: Plan) -> Arena:
    """First fit, the largest buffers first: within a few percent of the best for networks of layers."""
    placed: list[tuple[int, _Lifetime]] = []
    for life in sorted(_lifetimes(plan), key=lambda life: (-life.buffer.layout.size, life.first)):
        beside = sorted(
            (offset, offset + other.buffer.layout.size)
            for offset, other in placed
            if other.first <= life.last and life.first <= other.last
        )
        offset = 0
        for begin, end in beside:
            if offset + life.buffer.layout.size <= begin:
                break
            offset = max(offset, end)
        placed.append((offset, life))
    size = max((offset + life.buffer.layout.size for offset, life in placed), default=0)
    return Arena({life.buffer.base: offset for offset, life in placed}, size)


def _lifetimes(plan: Plan) -> list[_Lifetime]:
    """From the step that first touches a buffer to the last."""
    seen: dict[int, _Lifetime] = {}
    for index, step in enumerate(plan.steps):
        for buffer in step.buffers:
            first = seen[buffer.base].first if buffer.base in seen else index
            seen[buffer.base] = _Lifetime(buffer, first, index)
    return list(seen.values())
