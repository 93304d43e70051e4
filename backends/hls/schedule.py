"""When each process reads and writes: the loops of the kernels, turn by turn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.ir.requantize_forms import Ints

from .design import Process, sparse_cycles
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
        rows, columns = layer.weight.shape
        blocks: int = rows // fold.pe * (columns // fold.simd)
        if process.step_count is None:
            return layer.pixels * blocks
        return sparse_cycles(layer.pixels, process.step_count, columns // fold.simd)
    if isinstance(layer, Window):
        if is_parallel(process):
            return math.prod(layer.geometry.padded) * (layer.x.channels // fold.pe)
        return fill(process) + sum(max(row) for row in _rows(process, layer))
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


def fill(process: Process) -> int:
    """The cycles before a window generator that sends tap by tap sends its first window of a frame; 0 for others."""
    if not isinstance(process.layer, Window) or is_parallel(process):
        return 0
    return lines_for(process.layer.geometry, 0) * _line(process, process.layer)


def room(process: Process, pace: int) -> dict[str, int]:
    """Beats that come, or are wanted, at each stream of a process that works in bursts while nothing passes there.

    Bursts: a window generator that sends windows whole stands still beyond the edges, a reorder before it sends.
    pace: cycles from frame to frame. A pause lasts its turns at least; where the other side is slow, as long as what
    passes there meanwhile takes.
    """
    if not is_parallel(process) and not isinstance(process.layer, Reorder):
        return {}
    plan, (x, y) = schedule(process), (process.reads[0], process.writes[0])
    places = {x: (plan.reads[0], plan.writes[0]), y: (plan.writes[0], plan.reads[0])}
    found = {}
    for wire, (own, other) in places.items():
        ends = np.append(own, own[0] + plan.turns)
        passed = np.searchsorted(np.concatenate([other, other + plan.turns]), ends)
        shares = int(np.diff(ends).max()) / pace, int(np.diff(passed).max()) / len(other)
        found[wire.stream.name] = math.ceil(max(shares) * wire.beats)
    return found


def last_pixel(process: Process) -> int:
    """The cycles that a matrix-vector unit goes on after it read the last beat of a frame; 0 for others."""
    layer, fold = process.layer, process.fold
    if not isinstance(layer, MatrixVector):
        return 0
    rows, columns = layer.weight.shape
    blocks: int = columns // fold.simd
    if process.step_count is None:
        return int(rows // fold.pe - 1) * blocks
    steps: int = process.step_count
    return steps if layer.pixels == 1 else max(steps, blocks) + steps - blocks


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
    if is_parallel(process):
        return _parallel_window(process, layer)
    start = fill(process)
    reads, writes = [np.arange(start)], []
    for read, sent in _rows(process, layer):
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
