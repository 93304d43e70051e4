"""Steps that become the last part of the step before them, where the bits stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .steps import Convolution, Step, Sum, Walk

WIDE = 24
"""Pixels of a row from which on it costs a kernel little to go row by row, not through the plane at once."""


def fuse_sums(steps: Sequence[Step]) -> tuple[Step, ...]:
    """A sum of a convolution's output becomes part of that convolution, which then writes the sum in its place.

    Nothing else may read the convolution's output. Of two convolutions the later one is taken, unless it would have to
    leave a plane without gaps for one with a border.
    """
    found = list(steps)
    for step in steps:
        if not isinstance(step, Sum):
            continue
        fitting = [(side, conv) for side in (0, 1) if (conv := _producer(found, step, side)) is not None]
        if fitting:
            side, conv = max(fitting, key=lambda one: _rank(found, step, one[1]))
            found[found.index(step)] = _joined(conv, step, side)
            found.remove(conv)
    return tuple(found)


def _producer(steps: Sequence[Step], step: Sum, side: int) -> Convolution | None:
    """The convolution that can do the sum, whose operand `side` it writes."""
    walk, other = step.reads[side], step.reads[1 - side]
    writers = [s for s in steps if s.writes is not None and s.writes.buffer is walk.buffer]
    readers = [s for s in steps if any(read.buffer is walk.buffer for read in s.reads)]
    if len(writers) != 1 or len(readers) != 1 or other.buffer is walk.buffer:
        return None
    return writers[0] if isinstance(writers[0], Convolution) and _alike(writers[0], step, walk) else None


def _alike(conv: Convolution, step: Step, walk: Walk) -> bool:
    """Whether the convolution writes pixel for pixel what the sum does. Kernels of one row take no sum."""
    assert step.writes is not None
    y, x = step.writes.buffer.layout, walk.buffer.layout
    same = (y.channels, y.rows, y.width, y.block) == (x.channels, x.rows, x.width, x.block)
    whole = walk == conv.writes and conv.residual is None and not conv.kernel.endswith("_vector")
    return same and whole and (_by_rows(conv) or _flat(step.writes) or y.width >= WIDE)


def _flat(walk: Walk) -> bool:
    layout = walk.buffer.layout
    return layout.rows == 1 or walk.affine.row_bytes == layout.width * layout.block


def _by_rows(conv: Convolution) -> bool:
    """Whether its kernel goes row by row anyway, because its input has gaps."""
    assert conv.writes is not None
    block = conv.writes.buffer.layout.block
    return not _flat(conv.writes) or (conv.rows > 1 and conv.reads[0].affine.row_bytes != conv.width * block)


def _rank(steps: Sequence[Step], step: Sum, conv: Convolution) -> tuple[bool, int]:
    assert step.writes is not None
    return _by_rows(conv) or _flat(step.writes), steps.index(conv)


def _joined(conv: Convolution, step: Sum, side: int) -> Convolution:
    other = 1 - side
    scales = step.scales[side], step.scales[other], step.scales[2]
    zero_points = step.zero_points[side], step.zero_points[other], step.zero_points[2]
    summed = replace(step, scales=scales, zero_points=zero_points)
    reads = conv.reads[0], step.reads[other]
    reason = f"{conv.reason}; then the sum %{step.node}"
    return replace(conv, reads=reads, writes=step.writes, residual=summed, reason=reason)
