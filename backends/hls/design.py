"""A dataflow graph with its folding: how many values each stream carries at once, and converters where that changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from .graph import (
    Concat,
    Constant,
    Depthwise,
    Geometry,
    Graph,
    Layer,
    MatrixVector,
    MaxPool,
    Port,
    Reorder,
    Select,
    Stream,
    SumPool,
    Window,
    sparse_steps,
)
from .orders import run_lanes


@dataclass(frozen=True)
class Fold:
    """How much of a layer is computed in one cycle: `pe` outputs, each from `simd` inputs.

    A window generator reads `pe` values and sends those of `simd` taps together.

    streamed: whether a matrix-vector unit reads its weights from memory outside the chip. fabric: whether its products
    are made from look-up tables, not from multipliers.
    """

    pe: int = 1
    simd: int = 1
    streamed: bool = False
    fabric: bool = False


_SMALL_PRODUCT = 20
"""Products of up to so many bits times bits are made from look-up tables in any case."""


def in_fabric(fold: Fold, left: int, right: int) -> bool:
    """Whether products of those widths are made from look-up tables."""
    return fold.fabric or left * right <= _SMALL_PRODUCT


@dataclass(frozen=True)
class Wire:
    """A stream and how many of its values travel in one cycle."""

    stream: Stream
    lanes: int

    @property
    def beats(self) -> int:
        """Cycles that it is busy in a frame."""
        return self.stream.count // self.lanes

    @property
    def width(self) -> int:
        """Bits that travel in one cycle."""
        return self.stream.bits * self.lanes


def sparse_cycles(pixels: int, steps: int, columns: int) -> int:
    """Cycles a frame of a static schedule: the first vector is read, the last one only computed with."""
    return columns + (pixels - 1) * max(steps, columns) + steps


@dataclass(frozen=True)
class Process:
    """A layer with its folding, or a converter between two folds where `layer` is None."""

    name: str
    layer: Layer | None
    fold: Fold
    reads: tuple[Wire, ...]
    writes: tuple[Wire, ...]

    @cached_property
    def step_count(self) -> int | None:
        """How many steps the static schedule has where that takes fewer cycles than all blocks; else None."""
        layer, pe, simd = self.layer, self.fold.pe, self.fold.simd
        if not isinstance(layer, MatrixVector) or self.fold.streamed:
            return None
        rows, columns = layer.weight.shape
        blocks: int = rows // pe * (columns // simd)
        if blocks == 1:
            return None
        steps = layer.sparse_steps(pe, simd)
        return steps if sparse_cycles(layer.pixels, steps, columns // simd) < layer.pixels * blocks else None

    @cached_property
    def steps(self) -> list[list[list[int]]] | None:
        """The static schedule of a matrix-vector unit that has one."""
        if self.step_count is None or not isinstance(self.layer, MatrixVector):
            return None
        return sparse_steps(self.layer.weight, self.fold.pe, self.fold.simd)


@dataclass(frozen=True)
class Design:
    """Processes in an order in which each comes after those that it reads from. All streams are read once."""

    graph: Graph
    folds: Mapping[str, Fold]
    processes: tuple[Process, ...]
    inputs: tuple[tuple[Port, Wire], ...]
    outputs: tuple[tuple[Port, Wire], ...]

    @cached_property
    def wires(self) -> tuple[Wire, ...]:
        """Every wire, inputs first, in the order in which they are written."""
        return (*(wire for _, wire in self.inputs), *(wire for process in self.processes for wire in process.writes))


@dataclass(frozen=True)
class Choices:
    """The numbers that `pe` and `simd` of a layer may be, in order."""

    pe: tuple[int, ...]
    simd: tuple[int, ...]


def divisors(number: int) -> list[int]:
    """The divisors of a number, in order."""
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def choices(layer: Layer) -> Choices:
    """What the fold of a layer may be.

    Behind a window generator, inputs are channels of one tap, or all channels of several taps; a layer that works on
    each channel by itself takes one tap or all.
    """
    if isinstance(layer, MatrixVector):
        rows, columns = layer.weight.shape
        inputs = divisors(layer.x.channels)
        return Choices(
            tuple(divisors(rows)),
            tuple(inputs + [layer.x.channels * d for d in divisors(columns // layer.x.channels)[1:]]),
        )
    if isinstance(layer, Depthwise | MaxPool | SumPool):
        return Choices(tuple(divisors(layer.x.channels)), tuple(sorted({1, taps_of(layer)})))
    return Choices(tuple(divisors(_widest(layer))), (1,))


def _widest(layer: Layer) -> int:
    """The most values that a layer without weights may take at once."""
    if isinstance(layer, Concat):
        return math.gcd(*(stream.count // layer.rounds for stream in layer.reads))
    if isinstance(layer, Select):
        return layer.masks.lanes
    if isinstance(layer, Constant):
        return layer.y.channels
    return run_lanes(layer.sequence, layer.x.count) if isinstance(layer, Reorder) else layer.x.channels


def taps_of(layer: Depthwise | MaxPool | SumPool) -> int:
    """How many values of each channel one result takes; one tap alone where no window generator sends them."""
    taps: int = layer.weight.shape[1] if isinstance(layer, Depthwise) else layer.taps
    return taps


def follows(layer: Layer) -> bool:
    """Whether a layer has no folding of its own and sends as its reader takes."""
    return isinstance(layer, Window)


def lanes_in(layer: Layer, fold: Fold) -> int:
    """How many values a layer takes from each stream in one cycle."""
    if isinstance(layer, MatrixVector):
        return fold.simd
    return fold.pe * fold.simd if isinstance(layer, Depthwise | MaxPool | SumPool) else fold.pe


def window_fold(geometry: Geometry, reader: Layer, fold: Fold) -> Fold:
    """That of a window generator: one tap of as many channels as the reader takes; all taps where it takes several."""
    if not isinstance(reader, MatrixVector):
        return Fold(fold.pe, fold.simd)
    channels = reader.x.channels
    if fold.simd < channels or geometry.taps == 1:
        return Fold(fold.simd)
    return Fold(channels, geometry.taps if fold.simd > channels else 1)


def design(graph: Graph, folds: Mapping[str, Fold]) -> Design:
    """Give every layer its fold; `folds` has one for each that does not follow its reader."""
    every = dict(folds)
    readers = {stream.name: layer for layer in graph.layers for stream in layer.reads}
    for layer in reversed(graph.layers):
        if isinstance(layer, Window):
            reader = readers[layer.y.name]
            every[layer.name] = window_fold(layer.geometry, reader, every[reader.name])
    written: dict[str, Wire] = {}
    processes: list[Process] = []
    inputs = []
    for port in graph.inputs:
        name = port.stream.name
        lanes = lanes_in(readers[name], every[readers[name].name]) if name in readers else port.stream.channels
        written[name] = Wire(port.stream, lanes)
        inputs.append((port, written[name]))
    for layer in graph.layers:
        fold = every[layer.name]
        reads = []
        for stream in layer.reads:
            wire, lanes = written[stream.name], lanes_in(layer, fold)
            if wire.lanes != lanes:
                wire = _converted(wire, lanes, processes)
            reads.append(wire)
        together = fold.pe * fold.simd if isinstance(layer, Window) else fold.pe
        writes = tuple(Wire(stream, together) for stream in layer.writes)
        written.update((wire.stream.name, wire) for wire in writes)
        processes.append(Process(layer.name, layer, fold, tuple(reads), writes))
    outputs = tuple((port, written[port.stream.name]) for port in graph.outputs)
    return Design(graph, every, tuple(processes), tuple(inputs), outputs)


def _converted(wire: Wire, lanes: int, processes: list[Process]) -> Wire:
    name = f"{wire.stream.name}_by_{lanes}"
    new = Wire(replace(wire.stream, name=name, side=True), lanes)
    processes.append(Process(f"{name}_converter", None, Fold(lanes, 1), (wire,), (new,)))
    return new


def is_unrolled(process: Process) -> bool:
    """Whether a unit computes all of its weights in one cycle, so that each is a constant of the circuit."""
    if not isinstance(process.layer, MatrixVector | Depthwise):
        return False
    rows, columns = process.layer.weight.shape
    return bool(process.fold.pe == rows and process.fold.simd == columns)
