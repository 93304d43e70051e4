"""A cycle-level simulation of a design: when every beat passes, with FIFOs of finite depth.

Each process starts a turn a cycle unless a stream that it reads is empty or one that it writes is full. Because no
process looks whether a stream is empty, the order in which the simulation takes them does not matter: a process goes on
until it has to wait, and the time of each of its turns is the latest of what it waits for.
"""

from __future__ import annotations

import atexit
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tersor.ir.errors import LoweringError
from tersor.ir.requantize_forms import Ints

from .design import Design, Wire
from .schedule import Schedule, schedule
from .toolchain import SIMULATION, compile_program, has_compiler

LATENCY = 4
"""Cycles from a turn's reads to its writes: the registers of a unit. An assumption; synthesis decides."""
SHALLOW = 2
"""The least depth of a FIFO: one beat is read while the next is written."""
UNBOUNDED = 1 << 62
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

    steady: whether all streams had the same interval in the end.

    For each stream, occupancy: the most beats that it ever held. blocked, starved: the cycles, after the first frame,
    that its writer waited for room, and its reader for beats.
    """

    latency: int
    interval: int
    steady: bool
    occupancy: Mapping[str, int]
    blocked: Mapping[str, int]
    starved: Mapping[str, int]


@dataclass
class Channel:
    """A stream during a simulation: when each beat was written and read. beats: of a frame."""

    depth: int
    beats: int
    written: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    blocked: int = 0
    starved: int = 0

    def occupancy(self) -> int:
        """The most beats held at once."""
        gone = np.searchsorted(np.asarray(self.read), np.asarray(self.written), side="left")
        return int((np.arange(1, len(self.written) + 1) - gone).max(initial=0))

    def carried(self, frames: int) -> Carried:
        """What is known of it when all frames have passed."""
        ends = np.asarray(self.read, np.int64)[self.beats - 1 :: self.beats] if self.beats else np.full(frames, -1)
        return Carried(self.occupancy(), self.blocked, self.starved, ends)


@dataclass(frozen=True)
class Carried:
    """What a stream carried: the most beats at once, cycles waited on both sides, and when it had read each frame."""

    occupancy: int
    blocked: int
    starved: int
    ends: Ints


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
        masks = np.zeros(plan.turns, np.int64)
        for bit, side in enumerate((*plan.reads, *plan.writes)):
            masks[side] |= 1 << bit
        places = np.flatnonzero(masks)
        return cls(plan.turns, tuple(reads), tuple(writes), places, masks[places])

    def go(self, channels: list[Channel], frames: int) -> bool:
        """Run until it has to wait; whether it moved."""
        start, count = self.at, len(self.places)
        every = [channels[index] for index in (*self.reads, *self.writes)]
        while self.at < frames * count:
            frame, index = divmod(self.at, count)
            turn, mask = int(self.places[index]) + frame * self.turns, int(self.masks[index])
            passing = [(channel, bit < len(self.reads)) for bit, channel in enumerate(every) if mask >> bit & 1]
            time = _start(self.clock + turn - self.last, passing, counts=frame > 0)
            if time is None:
                break
            for channel, is_read in passing:
                (channel.read if is_read else channel.written).append(time if is_read else time + LATENCY)
            self.clock, self.last, self.at = time, turn, self.at + 1
        return self.at > start


def _start(wanted: int, passing: list[tuple[Channel, bool]], counts: bool) -> int | None:
    """The cycle of a turn that could start at `wanted`; None where it waits for another process first.

    What it waits for longest is told, where it `counts`.
    """
    time, waits = wanted, None
    for channel, is_read in passing:
        ready = _ready(channel, is_read)
        if ready is None:
            return None
        if ready > time:
            time, waits = ready, (channel, is_read)
    if waits is not None and counts:
        channel, is_read = waits
        channel.starved += (time - wanted) * is_read
        channel.blocked += (time - wanted) * (not is_read)
    return time


def _ready(channel: Channel, is_read: bool) -> int | None:
    """The cycle from which a beat may pass; None where another process has to go first."""
    if is_read:
        return channel.written[len(channel.read)] + 1 if len(channel.read) < len(channel.written) else None
    freed = len(channel.written) - channel.depth
    if freed < 0:
        return 0
    return channel.read[freed] + 1 - LATENCY if freed < len(channel.read) else None


@dataclass(frozen=True)
class Simulator:
    """A design made ready: its processes between its streams, to be run with FIFOs of any depth.

    outputs: the places of the streams that leave.
    """

    names: tuple[str, ...]
    beats: tuple[int, ...]
    outputs: tuple[int, ...]
    actors: tuple[Actor, ...]

    @classmethod
    def of(cls, design: Design, pace: int | None = None) -> Simulator:
        """Inputs and constants come as fast as they are taken; with a pace, evenly over so many cycles a frame."""
        names = tuple(wire.stream.name for wire in design.wires)
        places = {name: index for index, name in enumerate(names)}
        outputs = tuple(places[wire.stream.name] for _, wire in design.outputs)
        return cls(names, tuple(wire.beats for wire in design.wires), outputs, tuple(_actors(design, places, pace)))

    def run(self, depths: Mapping[str, int], frames: int = 5, compiled: bool | None = None) -> Timing:
        """A few frames back to back. Streams of no given depth hold `SHALLOW` beats.

        compiled: whether by the C++ program, which does the same many times quicker; None: where there is a compiler.

        Raises Deadlock.
        """
        channels = [
            Channel(depths.get(name, SHALLOW), beats) for name, beats in zip(self.names, self.beats, strict=True)
        ]
        run = self._run_compiled if (has_compiler() if compiled is None else compiled) else self._run
        carried = dict(zip(self.names, run(channels, frames), strict=True))
        ends = np.array([stream.ends for stream in carried.values()])
        return Timing(
            int(ends[list(self.outputs), 0].max()) + 1,
            _interval(ends),
            len(set(np.diff(ends)[:, -1:].flat)) == 1,
            {name: stream.occupancy for name, stream in carried.items()},
            {name: stream.blocked for name, stream in carried.items()},
            {name: stream.starved for name, stream in carried.items()},
        )

    def _run(self, channels: list[Channel], frames: int) -> list[Carried]:
        actors = [replace(actor) for actor in self.actors]
        while sum(actor.go(channels, frames) for actor in actors):  # every one has its turn
            pass
        if any(actor.at < frames * len(actor.places) for actor in actors):
            raise self._stuck([len(channel.written) - len(channel.read) >= channel.depth for channel in channels])
        return [channel.carried(frames) for channel in channels]

    def _run_compiled(self, channels: list[Channel], frames: int) -> list[Carried]:
        head = [len(channels), len(self.actors), LATENCY, frames]
        head += [number for channel in channels for number in (channel.depth, channel.beats)]
        with tempfile.TemporaryFile() as file:  # many megabytes, for which a pipe is slow
            file.write(np.array(head, np.int64).tobytes() + self._encoded)
            file.seek(0)
            result = subprocess.run([str(_program())], stdin=file, capture_output=True, check=False)
        found = np.frombuffer(result.stdout, np.int64).reshape(len(channels), -1)
        if result.returncode == _STUCK:
            raise self._stuck(found[:, 0])
        if result.returncode:
            raise LoweringError("the dataflow simulation failed", found=result.stderr.decode(errors="replace")[-2000:])
        return [Carried(int(row[0]), int(row[1]), int(row[2]), row[3:]) for row in found]

    @cached_property
    def _encoded(self) -> bytes:
        """The actors as the compiled program reads them."""
        parts = []
        for actor in self.actors:
            head = [actor.turns, len(actor.reads), *actor.reads, len(actor.writes), *actor.writes, len(actor.places)]
            parts += [np.array(head, np.int64), actor.places, actor.masks]
        return np.concatenate(parts).tobytes()

    def _stuck(self, full: Iterable[Any]) -> Deadlock:
        return Deadlock(tuple(name for name, is_full in zip(self.names, full, strict=True) if is_full))


def simulate(design: Design, depths: Mapping[str, int], frames: int = 5, compiled: bool | None = None) -> Timing:
    """Run a few frames of a design back to back; inputs come as fast as they are taken. Raises Deadlock."""
    return Simulator.of(design).run(depths, frames, compiled)


def _interval(ends: Ints) -> int:
    """Cycles from frame to frame of the slowest stream, the median over the frames: others take its pace late.

    Streams beside the slowest process may be quicker, or irregular, until what they hold is used up.
    """
    if ends.shape[1] == 1:
        return int(ends.max())
    gaps = np.sort(np.diff(ends, axis=1), axis=1)
    return int(gaps[:, (ends.shape[1] - 2) // 2].max())


@cache
def _program() -> Path:
    """The compiled simulation, once a process of Python."""
    folder = tempfile.TemporaryDirectory(prefix="tersor-dataflow-")
    atexit.register(folder.cleanup)
    return compile_program([SIMULATION / "dataflow.cpp"], Path(folder.name) / "dataflow", [])


def _actors(design: Design, places: Mapping[str, int], pace: int | None) -> Iterator[Actor]:
    for _, wire in design.inputs:
        yield Actor.of(_source(wire, pace), [], [places[wire.stream.name]])
    for process in design.processes:
        sides = [[places[wire.stream.name] for wire in wires] for wires in (process.reads, process.writes)]
        plan = schedule(process) if process.reads else _source(process.writes[0], pace)
        yield Actor.of(plan, *sides)
    for _, wire in design.outputs:
        yield Actor.of(Schedule(wire.beats, (np.arange(wire.beats),), ()), [places[wire.stream.name]], [])


def _source(wire: Wire, pace: int | None) -> Schedule:
    """A beat in every cycle, or so many cycles a frame evenly."""
    turns = max(pace or 0, wire.beats)
    return Schedule(turns, (), (np.arange(wire.beats) * turns // wire.beats,))
