"""Copies between two layouts as nested loops: what would be a list of thousands of offsets is a few numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .layout import Offsets

DEEPEST = 5
"""Loops of one nest; more than any layout here needs."""


@dataclass(frozen=True)
class Loop:
    """`count` steps, each so many bytes further in the source and in the target."""

    count: int
    source: int
    target: int


@dataclass(frozen=True)
class Nest:
    """`length` bytes at every step of the loops, the outermost first, from these offsets on."""

    target: int
    source: int
    loops: tuple[Loop, ...]
    length: int


def nests(targets: Offsets, sources: Offsets) -> list[Nest] | None:
    """Nests that copy each source offset to its target offset, int64 of one shape; None where there is no order in it.

    Each axis has to add to both offsets by itself. What it adds is then divided into loops of constant steps, as the
    channels of a blocked layout are into blocks and places within one; a last block cut short is a nest of its own.
    """
    if not targets.size:
        return []
    axes = (
        [_steps(targets, axis) for axis in range(targets.ndim)],
        [_steps(sources, axis) for axis in range(targets.ndim)],
    )
    for offsets, steps in zip((targets, sources), axes, strict=True):
        if not np.array_equal(offsets, _sum(offsets.flat[0], steps)):
            return None
    parts = [_divide(source, target) for target, source in zip(*axes, strict=True)]
    if any(part is None for part in parts):
        return None
    origin = int(targets.flat[0]), int(sources.flat[0])
    found = [_nest(origin, pieces) for pieces in itertools.product(*(part for part in parts if part is not None))]
    return found if all(len(nest.loops) <= DEEPEST for nest in found) else None


def _steps(offsets: Offsets, axis: int) -> Offsets:
    """What each position along an axis adds to the first offset."""
    line = offsets[tuple(slice(None) if i == axis else 0 for i in range(offsets.ndim))]
    steps: Offsets = line - line[0]
    return steps


def _sum(first: int, steps: list[Offsets]) -> Offsets:
    total = np.asarray(first)
    for axis, line in enumerate(steps):
        total = total + line.reshape([-1 if i == axis else 1 for i in range(len(steps))])
    return total


@dataclass(frozen=True)
class _Piece:
    """Some positions of one axis: where they begin, and the loops over them."""

    target: int
    source: int
    loops: tuple[Loop, ...]


def _divide(source: Offsets, target: Offsets) -> list[_Piece] | None:
    """An axis as loops of constant steps; two pieces where the last block is not whole."""
    count = len(source)
    if count == 1:
        return [_Piece(0, 0, ())]
    run = min(_run(source), _run(target))
    inner = Loop(run, int(source[1]), int(target[1]))
    if run == count:
        return [_Piece(0, 0, (inner,))]
    whole = count // run * run
    blocks = [line[:whole].reshape(-1, run) for line in (source, target)]
    if run == 1 or not all(np.array_equal(b - b[:, :1], np.broadcast_to(b[:1], b.shape)) for b in blocks):
        return None
    outer = _divide(blocks[0][:, 0], blocks[1][:, 0])
    if outer is None:
        return None
    pieces = [_Piece(piece.target, piece.source, (*piece.loops, inner)) for piece in outer]
    if whole < count:
        rest = _divide(source[whole:] - source[whole], target[whole:] - target[whole])
        if rest is None:
            return None
        begin = int(target[whole]), int(source[whole])
        pieces += [_Piece(begin[0] + piece.target, begin[1] + piece.source, piece.loops) for piece in rest]
    return pieces


def _run(line: Offsets) -> int:
    """How many positions from the first on are one step apart."""
    breaks = np.flatnonzero(np.diff(line) != line[1])
    return int(breaks[0]) + 1 if len(breaks) else len(line)


def _nest(origin: tuple[int, int], pieces: tuple[_Piece, ...]) -> Nest:
    target, source = (sum(side) for side in zip(origin, *((p.target, p.source) for p in pieces), strict=True))
    loops = [loop for piece in pieces for loop in piece.loops if loop.count > 1]
    ordered = sorted(loops, key=lambda loop: (-loop.target, -loop.source))
    joined: list[Loop] = []
    for loop in ordered:
        outer = joined[-1] if joined else None
        size = loop.count * loop.target, loop.count * loop.source
        if outer is not None and (outer.target, outer.source) == size:
            joined[-1] = Loop(outer.count * loop.count, loop.source, loop.target)
        else:
            joined.append(loop)
    if joined and (joined[-1].source, joined[-1].target) == (1, 1):
        return Nest(target, source, tuple(joined[:-1]), joined[-1].count)
    return Nest(target, source, tuple(joined), 1)
