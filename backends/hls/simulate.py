"""A cycle-level simulation of a design: when every beat passes, with FIFOs of finite depth.

Each process starts a turn a cycle unless a stream that it reads is empty or one that it writes is full. Because no
process looks whether a stream is empty, the order in which the simulation takes them does not matter: a process goes on
until it has to wait, and the time of each of its turns is the latest of what it waits for.
"""

from __future__ import annotations

import atexit
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from tersor.ir.errors import LoweringError
from tersor.ir.requantize_forms import Ints

from .design import Design
from .schedule import Schedule, schedule
from .toolchain import SIMULATION, compile_program, has_compiler

LATENCY = 4
"""Cycles from a turn's reads to its writes: the registers of a unit. An assumption; synthesis decides."""
UNBOUNDED = 1 << 62
_FRAMES = 5
"""So many that what is quicker than the slowest process has caught up, and the last interval is that of all others."""
_STUCK = 5
"""The exit status of the compiled simulation that says so."""


class Deadlock(Exception):  # noqa: N818  # an outcome that depths are chosen to avoid
    """No process can go on. `streams`: those that are full."""

    def __init__(self, streams: tuple[str, ...]) -> None:
        super().__init__(f"deadlock: full are {', '.join(streams)}")
        self.streams = streams


@dataclass(frozen=True)
class Timing:
    """latency: cycles from the first input to the last output of one frame. interval: from frame to frame.

    occupancy: the most beats that each stream ever held.
    """

    latency: int
    interval: int
    occupancy: Mapping[str, int]


@dataclass
class Channel:
    """A stream during a simulation: when each beat was written and read."""

    depth: int
    written: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    def occupancy(self) -> int:
        """The most beats held at once."""
        written, read = np.asarray(self.written), np.asarray(self.read)
        if not len(written):
            return 0
        gone = np.searchsorted(read, written, side="left")
        return int((np.arange(1, len(written) + 1) - gone).max())


@dataclass
class Actor:
    """A process on its way through its frames.

    reads, writes: its channels. places: the turns at which it does something, in order; masks: a bit for each channel
    that passes a beat then, those that are read first.
    """

    turns: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    places: Ints
    masks: Ints
    at: int = 0
    clock: int = 0
    last: int = 0

    @classmethod
    def of(cls, plan: Schedule, reads: Sequence[int], writes: Sequence[int]) -> Actor:
        """A process of that schedule between channels."""
        sides = (*plan.reads, *plan.writes)
        places = np.unique(np.concatenate(sides)) if sides else np.zeros(0, np.int64)
        masks = np.zeros(len(places), np.int64)
        for bit, side in enumerate(sides):
            masks[np.searchsorted(places, side)] |= 1 << bit
        return cls(plan.turns, tuple(reads), tuple(writes), places, masks)

    def go(self, channels: list[Channel], frames: int) -> bool:
        """Run until it has to wait; whether it moved."""
        start, count = self.at, len(self.places)
        every = [channels[index] for index in (*self.reads, *self.writes)]
        while self.at < frames * count:
            frame, index = divmod(self.at, count)
            turn, mask = int(self.places[index]) + frame * self.turns, int(self.masks[index])
            passing = [(channel, bit < len(self.reads)) for bit, channel in enumerate(every) if mask >> bit & 1]
            time = _start(self.clock + turn - self.last, passing)
            if time is None:
                break
            for channel, is_read in passing:
                (channel.read if is_read else channel.written).append(time if is_read else time + LATENCY)
            self.clock, self.last, self.at = time, turn, self.at + 1
        return self.at > start


def _start(time: int, passing: list[tuple[Channel, bool]]) -> int | None:
    """The cycle of a turn that could start at `time`; None where it waits for another process first."""
    for channel, is_read in passing:
        if is_read:
            if len(channel.read) >= len(channel.written):
                return None
            time = max(time, channel.written[len(channel.read)] + 1)
            continue
        freed = len(channel.written) - channel.depth
        if freed >= len(channel.read):
            return None
        if freed >= 0:
            time = max(time, channel.read[freed] + 1 - LATENCY)
    return time


def simulate(design: Design, depths: Mapping[str, int], frames: int = _FRAMES, compiled: bool | None = None) -> Timing:
    """Run a few frames back to back; inputs come as fast as they are taken.

    compiled: whether by the C++ program, which does the same many times quicker; None: where there is a compiler.

    Raises Deadlock.
    """
    names = [wire.stream.name for wire in design.wires]
    channels = [Channel(depths.get(name, 2)) for name in names]
    actors = list(_actors(design, {name: index for index, name in enumerate(names)}))
    if has_compiler() if compiled is None else compiled:
        done = _run_compiled(actors, channels, frames)
    else:
        done = _run(actors, channels, frames)
    if not done:
        full = [name for name, c in zip(names, channels, strict=True) if len(c.written) - len(c.read) >= c.depth]
        raise Deadlock(tuple(full))
    by_name = dict(zip(names, channels, strict=True))
    ends = [(by_name[wire.stream.name], wire.beats) for _, wire in design.outputs]
    finished = [max(int(channel.read[(frame + 1) * beats - 1]) for channel, beats in ends) for frame in range(frames)]
    return Timing(
        finished[0] + 1, _interval(channels, frames), {name: channel.occupancy() for name, channel in by_name.items()}
    )


def _interval(channels: list[Channel], frames: int) -> int:
    """Cycles from frame to frame of the slowest stream, the median over the frames: others take its pace late.

    Streams beside the slowest process may be quicker, or irregular, until what they hold is used up.
    """
    if frames == 1:
        return max((int(channel.read[-1]) for channel in channels if len(channel.read)), default=0)
    ends = [np.asarray(channel.read).reshape(frames, -1)[:, -1] for channel in channels if len(channel.read)]
    return max((int(np.sort(np.diff(end))[(frames - 2) // 2]) for end in ends), default=0)


def _run(actors: list[Actor], channels: list[Channel], frames: int) -> bool:
    moved = True
    while moved:
        moved = sum(actor.go(channels, frames) for actor in actors) > 0  # every one has its turn
    return all(actor.at == frames * len(actor.places) for actor in actors)


def _run_compiled(actors: list[Actor], channels: list[Channel], frames: int) -> bool:
    parts = [[len(channels), len(actors), LATENCY, frames, *(channel.depth for channel in channels)]]
    for actor in actors:
        head = [actor.turns, len(actor.reads), *actor.reads, len(actor.writes), *actor.writes, len(actor.places)]
        parts += [head, actor.places, actor.masks]  # type: ignore[list-item]  # arrays of the same integers
    data = np.concatenate([np.asarray(part, np.int64) for part in parts]).tobytes()
    result = subprocess.run([str(_program())], input=data, capture_output=True, check=False)
    if result.returncode not in (0, _STUCK):
        raise LoweringError("the dataflow simulation failed", found=result.stderr.decode(errors="replace")[-2000:])
    found, place = np.frombuffer(result.stdout, np.int64), 0
    for channel in channels:
        lists = []
        for _ in range(2):
            count = int(found[place])
            lists.append(found[place + 1 : place + 1 + count])
            place += 1 + count
        channel.written, channel.read = lists  # type: ignore[assignment]  # only read from now on
    return result.returncode == 0


@cache
def _program() -> Path:
    """The compiled simulation, once a process of Python."""
    folder = tempfile.TemporaryDirectory(prefix="tersor-dataflow-")
    atexit.register(folder.cleanup)
    return compile_program([SIMULATION / "dataflow.cpp"], Path(folder.name) / "dataflow", [])


def _actors(design: Design, places: Mapping[str, int]) -> Iterator[Actor]:
    for _, wire in design.inputs:
        yield Actor.of(Schedule(wire.beats, (), (np.arange(wire.beats),)), [], [places[wire.stream.name]])
    for process in design.processes:
        sides = [[places[wire.stream.name] for wire in wires] for wires in (process.reads, process.writes)]
        yield Actor.of(schedule(process), *sides)
    for _, wire in design.outputs:
        yield Actor.of(Schedule(wire.beats, (np.arange(wire.beats),), ()), [places[wire.stream.name]], [])
