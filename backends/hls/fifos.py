"""How deep each FIFO has to be: as deep as it ever was in a simulation at the pace of the slowest process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .design import Design, Process
from .graph import MatrixVector, Window
from .schedule import behind_window, is_parallel, last_pixel, turns
from .simulate import SHALLOW, UNBOUNDED, Simulator, Timing

_FRAMES = (5, 10, 20)
"""Simulated until it has settled: in a long pipeline each process may first be late by what its readers are."""


@dataclass(frozen=True)
class Fifos:
    """The depth of each FIFO in beats, and the timing that the design has with them.

    formula: cycles from frame to frame by formula, to be set beside `timing.interval`.
    """

    depths: Mapping[str, int]
    timing: Timing
    formula: int


def size_fifos(design: Design) -> Fifos:
    """Simulate with inputs evenly over the cycles of the formula and FIFOs without an end; keep what was used.

    At that pace every process keeps up, so no FIFO holds more than bursts, and what one branch of a residual has in
    flight. Only what a window generator sends tap by tap stays shallow: each value leaves several times, so it is
    cheaper to let the generator wait, and lines before it. With depths of what was held at most, that very schedule is
    possible, so there is no deadlock and no slower pace; a second simulation, with inputs as fast as they are taken,
    shows it.
    """
    pace = interval(design)
    shallow = _behind_windows(design)
    endless = {wire.stream.name: UNBOUNDED for wire in design.wires if wire.stream.name not in shallow}
    paced, free = Simulator.of(design, pace), Simulator.of(design)
    held = _settled(paced, endless, lambda timing: timing.steady).occupancy
    depths = {name: max(SHALLOW, beats) for name, beats in held.items()}
    return Fifos(depths, _settled(free, depths, lambda timing: timing.interval <= pace), pace)


def _settled(simulator: Simulator, depths: Mapping[str, int], is_settled: Callable[[Timing], bool]) -> Timing:
    """The timing of as few frames as it takes to settle, or of many."""
    for frames in _FRAMES:
        timing = simulator.run(depths, frames)
        if is_settled(timing):
            break
    return timing


def interval(design: Design) -> int:
    """Cycles from frame to frame by formula: the slowest process, with the lines that its window generator fills."""
    before = {wire.stream.name: process for process in design.processes for wire in process.writes}
    return max((max(turns(process), _behind(process, before)) for process in design.processes), default=0)


def _behind(process: Process, before: Mapping[str, Process]) -> int:
    """The cycles of a process behind a window generator that sends tap by tap; 0 for others."""
    source = before.get(process.reads[0].stream.name) if process.reads else None
    if source is None or not isinstance(source.layer, Window) or is_parallel(source):
        return 0
    layer, fold = process.layer, process.fold
    after = last_pixel(layer, fold, process.step_count) if isinstance(layer, MatrixVector) else 0
    return behind_window(source.layer.geometry, source.layer.x.channels // source.fold.pe, turns(process), after)


def _behind_windows(design: Design) -> set[str]:
    """Streams that carry what a window generator sends tap by tap, also by other lanes."""
    found: set[str] = set()
    for process in design.processes:
        sends = isinstance(process.layer, Window) and not is_parallel(process)
        if sends or (process.layer is None and process.reads[0].stream.name in found):
            found.add(process.writes[0].stream.name)
    return found
