"""In which order values travel, and what a stream in another order takes.

An order is int64 of a tensor's shape: for each element, which value of the stream it is; -1 for an element that no
value stands for, as padding adds them. Operators that move data change orders alone. Only where a layer cannot read a
stream as it comes is something built: `Masks` say what a select keeps, a `Ring` how a reorder keeps and sends values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tersor.ir.requantize_forms import Bools, Ints

NOTHING = -1
"""In an order: no value of the stream."""
_MOST_LOOPS = 8
_SETTLES = 4
"""Turns between writing a word of a memory and reading it: the registers of a pipeline."""
_SLOWER = 1.1
"""How many times longer a frame may take where that saves memory."""


def is_whole(order: Ints, count: int) -> bool:
    """Whether every value of a stream of so many is one element."""
    return order.size == count and np.array_equal(np.sort(order, axis=None), np.arange(count))


def channels_last(shape: tuple[int, ...]) -> Ints:
    """The order in which a tensor travels: images pixel by pixel, channels together; others with the last dimension."""
    order = np.arange(math.prod(shape))
    if len(shape) < 4:
        return order.reshape(shape)
    return np.moveaxis(order.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def channel_places(order: Ints) -> Ints | None:
    """Of int64[pixels, channels]: which channel travels at each place of a pixel, int64[channels].

    None where it does not travel pixel by pixel with the same places in each.
    """
    pixels, channels = order.shape
    places = order - np.arange(pixels)[:, None] * channels
    if not is_whole(order, order.size) or (places != places[0]).any() or places[0].min(initial=0) < 0:
        return None
    return np.argsort(places[0])


def inside(order: Ints) -> tuple[slice, slice] | None:
    """Of int64[rows, columns, channels]: the rows and columns within an even border of padding; None without one."""
    there = order != NOTHING
    spans = [np.flatnonzero(there.any(axis=axes)) for axes in ((1, 2), (0, 2))]
    if any(not len(span) for span in spans):
        return None
    rows, columns = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return (rows, columns) if there.sum() == there[rows, columns].size else None


# -- what a select keeps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masks:
    """What is kept of a stream: rows, columns and channels, bool each. A value is kept where all three say so."""

    rows: Bools
    columns: Bools
    channels: Bools

    @classmethod
    def of(cls, kept: Bools, channels: int) -> Masks | None:
        """Those of bool[values]; None where rows, columns and channels cannot tell."""
        table = kept.reshape(-1, channels)
        pixels, places = _sides(table)
        if not np.array_equal(table, pixels[:, None] & places):
            return None
        widths = (width for width in range(1, len(pixels) + 1) if len(pixels) % width == 0)
        planes = (pixels.reshape(-1, width) for width in widths)  # one column always serves; short tables are better
        sides = [_sides(plane) for plane in planes if _is_grid(plane)]
        return cls(*min(sides, key=lambda side: len(side[0]) + len(side[1])), places)

    @property
    def kept(self) -> Bools:
        """Which values, bool[values]."""
        plane = self.rows[:, None, None] & self.columns[:, None] & self.channels
        every: Bools = plane.reshape(-1)
        return every

    @property
    def lanes(self) -> int:
        """The most neighbouring channels that are all kept or all dropped, wherever a beat starts."""
        edges = np.flatnonzero(np.diff(self.channels.astype(np.int64))) + 1
        return math.gcd(len(self.channels), *edges.tolist())


def _sides(plane: Bools) -> tuple[Bools, Bools]:
    """The rows and the columns that have anything, bool each."""
    return np.logical_or.reduce(plane, axis=1), np.logical_or.reduce(plane, axis=0)


def _is_grid(plane: Bools) -> bool:
    rows, columns = _sides(plane)
    return np.array_equal(plane, rows[:, None] & columns)


# -- how a reorder keeps and sends -----------------------------------------------------------------------------------


def run_lanes(sequence: Ints, count: int) -> int:
    """The most values that always travel next to each other, before and after: what may pass in one beat."""
    edges = np.flatnonzero(np.diff(sequence) != 1) + 1
    starts = sequence[np.concatenate([[0], edges])]
    return math.gcd(count, len(sequence), *edges.tolist(), *starts.tolist())


@dataclass(frozen=True)
class Ring:
    """A memory of `size` beats between a stream of `taken` beats and one that sends them in `sequence`.

    A beat is read every `step` turns; the first is sent after `lead` turns, then one every turn. So no beat is sent
    before it came, and none is written over before it was sent for the last time.
    """

    taken: int
    sequence: Ints
    step: int

    @classmethod
    def of(cls, taken: int, sequence: Ints) -> Ring:
        """The one that keeps least, of those that are about as quick as the quickest."""
        steps = sorted({1, max(len(sequence) // taken, 1)})
        rings = [cls(taken, sequence, step) for step in steps]
        quickest = min(ring.turns for ring in rings)
        return min((ring for ring in rings if ring.turns <= _SLOWER * quickest), key=lambda ring: ring.size)

    @cached_property
    def lead(self) -> int:
        """Turns before the first beat is sent."""
        return int((self.sequence * self.step - np.arange(len(self.sequence))).max()) + _SETTLES

    @cached_property
    def size(self) -> int:
        """Beats that are kept."""
        last = np.full(self.taken, NOTHING)
        np.maximum.at(last, self.sequence, np.arange(len(self.sequence)))
        used = np.flatnonzero(last != NOTHING)
        until = -((-self.lead - last[used]) // self.step)
        return int(np.clip((until - used).max(), 1, self.taken))

    @property
    def turns(self) -> int:
        """Cycles a frame."""
        return max(self.lead + len(self.sequence), (self.taken - 1) * self.step + 1)


def loops(sequence: Ints) -> list[tuple[int, int]] | None:
    """A sequence as nested loops, the innermost first: how often, and by how much the address grows each time.

    None where loops are not enough, or too many.
    """
    found: list[tuple[int, int]] = []
    rest = sequence
    while len(rest) > 1:
        step = rest[1] - rest[0]
        breaks = np.flatnonzero(np.diff(rest) != step)
        count = int(breaks[0]) + 1 if len(breaks) else len(rest)
        if len(rest) % count or (np.diff(rest.reshape(-1, count), axis=1) != step).any() or len(found) == _MOST_LOOPS:
            return None
        found.append((count, int(step)))
        rest = rest.reshape(-1, count)[:, 0]
    return found
