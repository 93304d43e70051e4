"""How deep each FIFO has to be: as deep as it ever was in a simulation in which it did not matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .design import Design, Process
from .graph import MatrixVector, Select, Window
from .schedule import fill, is_parallel, last_pixel, room, stride_lines, turns
from .simulate import UNBOUNDED, Timing, simulate

SHALLOW = 2


@dataclass(frozen=True)
class Fifos:
    """The depth of each FIFO in beats, and the timing that the design has with them.

    formula: cycles from frame to frame by formula, to be set beside `timing.interval`.
    """

    depths: Mapping[str, int]
    timing: Timing
    formula: int


def size_fifos(design: Design) -> Fifos:
    """Simulate with generous FIFOs where paths meet again and in front of window generators; keep what was used.

    A branch waits at a join for the other, so its FIFO holds what the other has in flight. A window generator takes the
    first lines of a frame at once, so a FIFO in front of it lets what is before it run on between frames. What drops
    pixels sends a row of them at once, and then none; what works in bursts is given room for what comes meanwhile. A
    matrix-vector unit takes a vector at once, and then none while
    it computes. With depths of what was held at most, no write has to wait that did not before: the schedule is the
    same, so there is no deadlock; the second simulation shows it.
    """
    generous, pace = dict.fromkeys(_joins(design), UNBOUNDED), interval(design)
    for process in design.processes:
        if isinstance(process.layer, Window):
            name = process.reads[0].stream.name
            generous.setdefault(name, max(fill(process) + stride_lines(process), SHALLOW))
        if isinstance(process.layer, MatrixVector) and not process.layer.x.side:
            wire = process.reads[0]
            generous.setdefault(wire.stream.name, wire.beats // process.layer.pixels + SHALLOW)
        if isinstance(process.layer, Select):
            wire = process.writes[0]
            rows = int(process.layer.masks.rows.sum())
            generous.setdefault(wire.stream.name, wire.beats // rows + SHALLOW)
        for name, beats in room(process, pace).items():
            generous[name] = max(generous.get(name, 0), beats + SHALLOW)
    first = simulate(design, generous)
    depths = {
        wire.stream.name: max(SHALLOW, first.occupancy[wire.stream.name] if wire.stream.name in generous else SHALLOW)
        for wire in design.wires
    }
    return Fifos(depths, simulate(design, depths), pace)


def interval(design: Design) -> int:
    """Cycles from frame to frame by formula: the slowest process, with the lines that its window generator fills."""
    before = {wire.stream.name: process for process in design.processes for wire in process.writes}
    return max((turns(process) + _waits(process, before) for process in design.processes), default=0)


def _waits(process: Process, before: Mapping[str, Process]) -> int:
    """What the unit behind a window generator waits for at the start of a frame.

    The generator fills its lines while the unit is still busy with the last pixel of the frame before.
    """
    source = before.get(process.reads[0].stream.name) if process.reads else None
    if source is None or not isinstance(source.layer, Window) or is_parallel(source) or turns(process) < turns(source):
        return 0
    return max(0, fill(source) - last_pixel(process))


def _joins(design: Design) -> list[str]:
    """Streams into a layer with two inputs whose paths come from one fork."""
    origins: dict[str, frozenset[str]] = {}
    found = []
    for process in design.processes:
        sides = [origins.get(wire.stream.name, frozenset()) for wire in process.reads]
        if len(sides) == 2 and sides[0] & sides[1]:
            found += [wire.stream.name for wire in process.reads]
        own = frozenset().union(*sides)
        if len(process.writes) > 1:
            own |= {process.name}
        origins.update((wire.stream.name, own) for wire in process.writes)
    return found
