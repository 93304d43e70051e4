"""When each process reads and writes: the loops of the kernels, turn by turn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.ir.requantize_forms import Ints

from .design import Fold, Process, sparse_cycles
from .graph import (
    Concat,
    Depthwise,
    Geometry,
    GlobalPool,
    MatrixVector,
    MaxPool,
    Reorder,
    Select,
    SumPool,
    Window,
)
from .orders import Ring


@dataclass(frozen=True)
class Schedule:
    """One frame of a process that starts a turn of its loop every cycle.

    turns: how many. reads, writes: for each stream the turns at which a beat passes, int64[beats].
    """

    turns: int
    reads: tuple[Ints, ...]
    writes: tuple[Ints, ...]


def schedule(process: Process) -> Schedule:
    """The schedule of one process, as its kernel has it."""
    if process.layer is None:
        return _convert(process)
    return _SCHEDULES.get(type(process.layer), _together)(process, process.layer)


def turns(process: Process) -> int:
    """The cycles of one frame, by formula."""
    layer, fold = process.layer, process.fold
    if isinstance(layer, MatrixVector):
        return unit_turns(layer, fold, process.step_count)
    if isinstance(layer, Window):
        return window_turns(layer.geometry, layer.x.channels // fold.pe, is_parallel(process))
    if isinstance(layer, Reorder):
        return ring(process, layer).turns
    if isinstance(layer, Depthwise | MaxPool | SumPool | Select | GlobalPool):
        return process.reads[0].beats
    if isinstance(layer, Concat):
        return process.writes[0].beats
    return max(wire.beats for wire in (*process.reads, *process.writes))


def is_parallel(process: Process) -> bool:
    """Whether a window generator sends all taps of a window together."""
    return isinstance(process.layer, Window) and process.fold.simd > 1


def ring(process: Process, layer: Reorder) -> Ring:
    """The memory of a reorder, in beats."""
    return Ring.of(process.reads[0].beats, layer.sequence[:: process.fold.pe] // process.fold.pe)


def unit_turns(layer: MatrixVector, fold: Fold, steps: int | None) -> int:
    """The cycles of a matrix-vector unit. steps: of its static schedule, where it has one."""
    rows, columns = layer.weight.shape
    if steps is None:
        return int(layer.pixels * (rows // fold.pe) * (columns // fold.simd))
    return sparse_cycles(layer.pixels, steps, int(columns) // fold.simd)


def last_pixel(layer: MatrixVector, fold: Fold, steps: int | None) -> int:
    """The cycles that a matrix-vector unit goes on after it read the last beat of a frame."""
    rows, columns = layer.weight.shape
    blocks: int = columns // fold.simd
    if steps is None:
        return int(rows // fold.pe - 1) * blocks
    return steps if layer.pixels == 1 else max(steps, blocks) + steps - blocks


def window_turns(g: Geometry, folds: int, parallel: bool) -> int:
    """The cycles of a window generator that takes a pixel in so many beats."""
    if parallel:
        return math.prod(g.padded) * folds
    return fill(g, folds) + sum(max(row) for row in row_turns(g, folds))


def fill(g: Geometry, folds: int) -> int:
    """The cycles before a window generator that sends tap by tap sends its first window of a frame."""
    return lines_for(g, 0) * g.plane[1] * folds


def row_turns(g: Geometry, folds: int) -> list[tuple[int, int]]:
    """For each row of windows, sent tap by tap: the beats that are read meanwhile and those that are sent."""
    have = [*(lines_for(g, row) for row in range(g.out[0])), g.plane[0]]
    sends = g.out[1] * g.taps * folds
    return [((after - before) * g.plane[1] * folds, sends) for before, after in itertools.pairwise(have)]


def behind_window(g: Geometry, folds: int, computed: int, after: int) -> int:
    """The cycles from frame to frame of a process behind a window generator that sends tap by tap.

    A row of windows takes what the generator reads meanwhile, or what the process computes. At the start of a frame the
    process waits until the generator has filled its lines, which begins when the last value of the frame before was
    taken.

    computed: cycles of the process by itself. after: those that it goes on after its last read.
    """
    reads = [read for read, _ in row_turns(g, folds)]
    return int(sum(max(read, computed / len(reads)) for read in reads)) + max(0, fill(g, folds) - after)


def lines_for(g: Geometry, out_row: int) -> int:
    """Lines that must be there before the windows of an output row are complete."""
    last = out_row * g.stride[0] - g.padding[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    return min(max(last, 0), g.plane[0])


def _window(process: Process, layer: Window) -> Schedule:
    if is_parallel(process):
        return _parallel_window(process, layer)
    folds = layer.x.channels // process.fold.pe
    start = fill(layer.geometry, folds)
    reads, writes = [np.arange(start)], []
    for read, sent in row_turns(layer.geometry, folds):
        reads.append(start + np.arange(read))
        writes.append(start + np.arange(sent))
        start += max(read, sent)
    return Schedule(start, (np.concatenate(reads),), (np.concatenate(writes),))


def _parallel_window(process: Process, layer: Window) -> Schedule:
    """The kernel moves over the padded image, a pixel a turn, and sends a window with the last pixel of it."""
    g, folds = layer.geometry, layer.x.channels // process.fold.pe
    inside, ends = [], []
    for padded, before, size, span, stride, out in zip(
        g.padded, g.padding, g.plane, g.span, g.stride, g.out, strict=True
    ):
        places = np.arange(padded)
        inside.append((places >= before) & (places < before + size))
        ends.append(np.isin(places, span - 1 + np.arange(out) * stride))
    reads, writes = (
        np.flatnonzero(np.repeat((rows[:, None] & columns).reshape(-1), folds)) for rows, columns in (inside, ends)
    )
    return Schedule(math.prod(g.padded) * folds, (reads,), (writes,))


def _select(process: Process, layer: Select) -> Schedule:
    beats = process.reads[0].beats
    kept = layer.masks.kept.reshape(beats, -1)[:, 0]
    return Schedule(beats, (np.arange(beats),), (np.flatnonzero(kept),))


def _reorder(process: Process, layer: Reorder) -> Schedule:
    plan = ring(process, layer)
    reads, writes = np.arange(plan.taken) * plan.step, plan.lead + np.arange(len(plan.sequence))
    return Schedule(plan.turns, (reads,), (writes,))


def _matrix_vector(process: Process, layer: MatrixVector) -> Schedule:
    rows, columns = layer.weight.shape
    folds, blocks = rows // process.fold.pe, columns // process.fold.simd
    if process.steps is None:
        pixel, read, written = folds * blocks, np.arange(blocks), (np.arange(folds) + 1) * blocks - 1
        return Schedule(
            layer.pixels * pixel, (_each(layer.pixels, pixel, read),), (_each(layer.pixels, pixel, written),)
        )
    lengths = np.cumsum([len(fold) for fold in process.steps])
    steps, pixels = int(lengths[-1]), layer.pixels
    pixel = max(steps, blocks)
    reads = np.concatenate([np.arange(blocks), blocks + _each(pixels - 1, pixel, np.arange(blocks))])
    writes = blocks + _each(pixels, pixel, lengths - 1)
    return Schedule(sparse_cycles(pixels, steps, blocks), (reads,), (writes,))


def _each(pixels: int, period: int, places: Ints) -> Ints:
    """The same places in each of so many periods."""
    every: Ints = (np.arange(pixels)[:, None] * period + places).reshape(-1)
    return every


def _reducing(process: Process, layer: Depthwise | MaxPool | SumPool) -> Schedule:
    """Every beat is read, and a result leaves with the last tap of each window."""
    beats, sent = process.reads[0].beats, process.writes[0].beats
    taps = beats // sent
    return Schedule(beats, (np.arange(beats),), ((np.arange(sent) + 1) * taps - 1,))


def _global_pool(process: Process, layer: GlobalPool) -> Schedule:
    beats, sent = process.reads[0].beats, process.writes[0].beats
    return Schedule(beats, (np.arange(beats),), (np.arange(beats - sent, beats),))


def _concat(process: Process, layer: Concat) -> Schedule:
    beats, rounds = process.writes[0].beats, layer.rounds
    left, right = (wire.beats // rounds for wire in process.reads)
    reads = _each(rounds, left + right, np.arange(left)), _each(rounds, left + right, left + np.arange(right))
    return Schedule(beats, reads, (np.arange(beats),))


def _together(process: Process, layer: Any) -> Schedule:
    """One beat from each stream to each, every turn."""
    beats = np.arange(process.writes[0].beats)
    return Schedule(len(beats), (beats,) * len(process.reads), (beats,) * len(process.writes))


def _convert(process: Process) -> Schedule:
    """As the converter does it: it reads where it holds too little, and writes where it holds enough."""
    lanes_in, lanes_out = process.reads[0].lanes, process.writes[0].lanes
    period = math.lcm(lanes_in, lanes_out)
    reads, writes, have, turn = [], [], 0, 0
    while turn < max(period // lanes_in, period // lanes_out):
        if have < lanes_out:
            reads.append(turn)
            have += lanes_in
        if have >= lanes_out:
            writes.append(turn)
            have -= lanes_out
        turn += 1
    count = process.reads[0].stream.count // period
    rest = process.reads[0].stream.count % period
    assert rest == 0, "both lanes divide the count, so their least common multiple does"
    return Schedule(count * turn, (_each(count, turn, np.array(reads)),), (_each(count, turn, np.array(writes)),))


_SCHEDULES: dict[type, Callable[[Process, Any], Schedule]] = {
    Window: _window,
    Select: _select,
    Reorder: _reorder,
    MatrixVector: _matrix_vector,
    Depthwise: _reducing,
    MaxPool: _reducing,
    SumPool: _reducing,
    GlobalPool: _global_pool,
    Concat: _concat,
}
