"""When each process reads and writes: the loops of the kernels, turn by turn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .design import Process, sparse_cycles
from .graph import Concat, Depthwise, Geometry, GlobalPool, MatrixVector, MaxPool, Subsample, SumPool, Window
from .requantizer import Ints


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
        rows, columns = layer.weight.shape
        blocks: int = rows // fold.pe * (columns // fold.simd)
        if process.steps is None:
            return layer.pixels * blocks
        return sparse_cycles(layer.pixels, sum(map(len, process.steps)), columns // fold.simd)
    if isinstance(layer, Window):
        return fill(process) + sum(max(row) for row in _rows(process, layer))
    if isinstance(layer, Depthwise | MaxPool | SumPool | Subsample | GlobalPool):
        return process.reads[0].beats
    if isinstance(layer, Concat):
        return process.writes[0].beats
    return max(wire.beats for wire in (*process.reads, *process.writes))


def fill(process: Process) -> int:
    """The cycles before a window generator sends its first window of a frame; 0 for others."""
    if not isinstance(process.layer, Window):
        return 0
    return lines_for(process.layer.geometry, 0) * _line(process, process.layer)


def last_pixel(process: Process) -> int:
    """The cycles that a matrix-vector unit goes on after it read the last beat of a frame; 0 for others."""
    if not isinstance(process.layer, MatrixVector):
        return 0
    plan = schedule(process)
    return plan.turns - 1 - int(plan.reads[0][-1])


def stride_lines(process: Process) -> int:
    """The beats of the lines that a window generator takes from one output row to the next; 0 for others."""
    return process.layer.geometry.stride[0] * _line(process, process.layer) if isinstance(process.layer, Window) else 0


def lines_for(g: Geometry, out_row: int) -> int:
    """Lines that must be there before the windows of an output row are complete."""
    last = out_row * g.stride[0] - g.padding[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    return min(max(last, 0), g.plane[0])


def _line(process: Process, layer: Window) -> int:
    return layer.geometry.plane[1] * (layer.x.channels // process.reads[0].lanes)


def _rows(process: Process, layer: Window) -> list[tuple[int, int]]:
    """For each output row, the beats that are read meanwhile and those that are sent."""
    g, line = layer.geometry, _line(process, layer)
    sends = g.out[1] * g.taps * (layer.x.channels // process.writes[0].lanes)
    have = [*(lines_for(g, row) for row in range(g.out[0])), g.plane[0]]
    return [((after - before) * line, sends) for before, after in itertools.pairwise(have)]


def _window(process: Process, layer: Window) -> Schedule:
    start = fill(process)
    reads, writes = [np.arange(start)], []
    for read, sent in _rows(process, layer):
        reads.append(start + np.arange(read))
        writes.append(start + np.arange(sent))
        start += max(read, sent)
    return Schedule(start, (np.concatenate(reads),), (np.concatenate(writes),))


def _subsample(process: Process, layer: Subsample) -> Schedule:
    g, folds = layer.geometry, layer.x.channels // process.reads[0].lanes
    rows, columns = (np.arange(count) * step for count, step in zip(g.out, g.stride, strict=True))
    pixels = (rows[:, None] * g.plane[1] + columns).reshape(-1)
    kept = (pixels[:, None] * folds + np.arange(folds)).reshape(-1)
    return Schedule(process.reads[0].beats, (np.arange(process.reads[0].beats),), (kept,))


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
    beats, pixels = process.writes[0].beats, layer.y.pixels
    left, right = (wire.beats // pixels for wire in process.reads)
    reads = _each(pixels, left + right, np.arange(left)), _each(pixels, left + right, left + np.arange(right))
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
    Subsample: _subsample,
    MatrixVector: _matrix_vector,
    Depthwise: _reducing,
    MaxPool: _reducing,
    SumPool: _reducing,
    GlobalPool: _global_pool,
    Concat: _concat,
}
