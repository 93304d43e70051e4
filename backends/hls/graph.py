"""The dataflow graph: layers that run at the same time, joined by streams of unsigned integers.

A stream carries images pixel by pixel, all channels of a pixel together. A value q of the program travels as q - low.
How many values travel at once is not part of the graph: `folding` decides that.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from tersor.ir.requantize_forms import Ints

from .orders import Masks
from .pair_sum import PairSum
from .requantizer import Requantizer, signed_bits


@dataclass(frozen=True)
class Stream:
    """What one layer sends to another in a frame: `pixels` times `channels` values from `low` to `high`.

    node: the program's node whose values they are. side: whether it carries what a window generator sends, which is not
    a value of the program.
    """

    name: str
    node: str
    pixels: int
    channels: int
    low: int
    high: int
    side: bool = False

    @property
    def count(self) -> int:
        """Values a frame."""
        return self.pixels * self.channels

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return max(1, (self.high - self.low).bit_length())


@dataclass(frozen=True)
class Layer:
    """One process. `node` is the program's node that it computes, `macs` what that takes in the dense model."""

    kind: ClassVar[str] = ""

    name: str
    node: str
    reads: tuple[Stream, ...]
    writes: tuple[Stream, ...]
    macs: int = field(default=0, kw_only=True)

    @property
    def x(self) -> Stream:
        """The first that is read."""
        return self.reads[0]

    @property
    def y(self) -> Stream:
        """The first that is written."""
        return self.writes[0]


@dataclass(frozen=True)
class Geometry:
    """Kernel positions over an image: rows first, then columns; `out` is how many there are.

    padding: rows above and columns to the left. Below and to the right it follows from `out`.
    """

    plane: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    out: tuple[int, int]

    @property
    def taps(self) -> int:
        """Pixels under the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_pointwise(self) -> bool:
        """Whether each position sees one pixel, without padding."""
        inside = all(
            (out - 1) * stride < size for out, stride, size in zip(self.out, self.stride, self.plane, strict=True)
        )
        return self.kernel == (1, 1) and self.padding == (0, 0) and inside

    @property
    def span(self) -> tuple[int, int]:
        """Rows and columns from the first tap of a kernel to its last."""
        rows, columns = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return rows, columns

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns that the kernel moves over, with padding, and with what no position sees."""
        rows, columns = (
            before + max(size, (out - 1) * stride - before + span)
            for before, size, out, stride, span in zip(
                self.padding, self.plane, self.out, self.stride, self.span, strict=True
            )
        )
        return rows, columns

    @property
    def lines(self) -> int:
        """Lines that a window generator keeps: those of one row of windows, and those that the next needs besides."""
        return min(self.plane[0], self.span[0] + self.stride[0])


@dataclass(frozen=True)
class Window(Layer):
    """Window generation. pad: what travels for a pixel beyond the edge."""

    kind: ClassVar[str] = "window"

    geometry: Geometry
    pad: int
    by_channel: bool


@dataclass(frozen=True)
class Select(Layer):
    """Some rows, columns and channels of what comes."""

    kind: ClassVar[str] = "select"

    masks: Masks


@dataclass(frozen=True)
class Reorder(Layer):
    """What comes, in another order, as often as wanted. sequence int64[sent]: for each value sent, which that came."""

    kind: ClassVar[str] = "reorder"

    sequence: Ints


@dataclass(frozen=True)
class MatrixVector(Layer):
    """weight int64[rows, columns], columns in the order of the stream; bias int64[rows] with the zero point in it.

    requantizer: None where the accumulators themselves leave. acc: the range that sums can have.
    """

    kind: ClassVar[str] = "mvau"

    weight: Ints
    bias: Ints
    requantizer: Requantizer | None
    acc: tuple[int, int]

    @property
    def pixels(self) -> int:
        """How many vectors a frame has."""
        columns: int = self.weight.shape[1]
        return self.x.count // columns

    @cached_property
    def _used(self) -> dict[int, Ints]:
        return {}

    def sparse_steps(self, pe: int, simd: int) -> int:
        """How many steps the static schedule has; a search asks for many folds, so blocks are counted once."""
        if simd not in self._used:
            self._used[simd] = _used_blocks(self.weight, simd)
        return _longest(self._used[simd], pe)


@dataclass(frozen=True)
class Depthwise(Layer):
    """weight int64[channels, taps]; otherwise as a matrix-vector unit."""

    kind: ClassVar[str] = "depthwise"

    weight: Ints
    bias: Ints
    requantizer: Requantizer | None
    acc: tuple[int, int]


@dataclass(frozen=True)
class Constant(Layer):
    """The same values in every frame. values int64[count]: as they travel."""

    kind: ClassVar[str] = "constant"

    values: Ints


@dataclass(frozen=True)
class MaxPool(Layer):
    """The greatest of `taps` values that follow each other."""

    kind: ClassVar[str] = "max_pool"

    taps: int


@dataclass(frozen=True)
class SumPool(Layer):
    """The sum of `taps` values that follow each other, requantized; `bias` takes the zero point off."""

    kind: ClassVar[str] = "sum_pool"

    taps: int
    bias: int
    requantizer: Requantizer
    acc: tuple[int, int]


@dataclass(frozen=True)
class GlobalPool(Layer):
    """The sum over all pixels, requantized."""

    kind: ClassVar[str] = "global_pool"

    bias: int
    requantizer: Requantizer
    acc: tuple[int, int]


@dataclass(frozen=True)
class Add(Layer):
    """Two values on grids of their own added onto a third."""

    kind: ClassVar[str] = "add"

    pair: PairSum


@dataclass(frozen=True)
class Multiply(Layer):
    """Two values multiplied and requantized. moves: what is added to what travels to give q - zero_point."""

    kind: ClassVar[str] = "multiply"

    moves: tuple[int, int]
    requantizer: Requantizer
    acc: tuple[int, int]


@dataclass(frozen=True)
class Lookup(Layer):
    """table int64[entries]: what travels out for each value that can travel in."""

    kind: ClassVar[str] = "lookup"

    table: Ints


@dataclass(frozen=True)
class Concat(Layer):
    """So many times a part of one stream, then a part of another: in each pixel the channels of both, for example."""

    kind: ClassVar[str] = "concat"

    rounds: int


@dataclass(frozen=True)
class Fork(Layer):
    """The same stream to two readers."""

    kind: ClassVar[str] = "fork"


@dataclass(frozen=True)
class Port:
    """An input or output of the program.

    index: its place in the signature. order: for each element of the tensor, in row-major order, which value of the
    stream it is. scale: float32[] or [channels] along `axis`; float = (q - zero_point) * scale. low, high: the grid.
    """

    stream: Stream
    index: int
    shape: tuple[int, ...]
    order: Ints
    scale: tuple[float, ...]
    zero_point: int
    axis: int | None = None
    low: int = 0
    high: int = 0


@dataclass(frozen=True)
class Graph:
    """Layers in an order in which each comes after those that it reads from."""

    layers: tuple[Layer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def streams(self) -> Iterator[Stream]:
        """Every stream once, in the order in which they are written."""
        yield from (port.stream for port in self.inputs)
        for layer in self.layers:
            yield from layer.writes


def with_forks(graph: Graph) -> Graph:
    """The graph with every stream read once: a fork in front of each second reader."""
    readers = Counter(stream.name for layer in graph.layers for stream in layer.reads)
    readers.update(port.stream.name for port in graph.outputs)
    taken = {stream.name for stream in graph.streams()} | {layer.name for layer in graph.layers}
    pending: dict[str, list[Stream]] = {}
    forks: dict[str, list[Layer]] = {}
    for stream in graph.streams():
        if readers[stream.name] > 1:
            forks[stream.name], pending[stream.name] = _forks(stream, readers[stream.name], taken)
    layers: list[Layer] = [fork for port in graph.inputs for fork in forks.get(port.stream.name, ())]
    for layer in graph.layers:
        reads = tuple(
            _copy(stream, pending[stream.name]) if stream.name in pending else stream for stream in layer.reads
        )
        layers.append(replace(layer, reads=reads))
        layers += [fork for stream in layer.writes for fork in forks.get(stream.name, ())]
    outputs = tuple(
        replace(port, stream=pending[port.stream.name].pop(0)) if port.stream.name in pending else port
        for port in graph.outputs
    )
    return Graph(tuple(layers), graph.inputs, outputs)


def _copy(stream: Stream, ends: list[Stream]) -> Stream:
    """The next end of a chain of forks, divided into pixels as its reader has it."""
    return replace(ends.pop(0), pixels=stream.pixels, channels=stream.channels)


def _forks(stream: Stream, readers: int, taken: set[str]) -> tuple[list[Layer], list[Stream]]:
    """A chain of forks and the streams that come out of it, one a reader."""
    forks: list[Layer] = []
    ends: list[Stream] = []
    source = stream
    for _ in range(readers - 1):
        left, right = (replace(stream, name=_unique(f"{stream.name}_copy", taken)) for _ in range(2))
        forks.append(Fork(_unique(f"{stream.name}_fork", taken), stream.node, (source,), (left, right)))
        ends.append(left)
        source = right
    return forks, [*ends, source]


def _unique(wanted: str, taken: set[str]) -> str:
    name = next(name for count in itertools.count(1) if (name := f"{wanted}_{count}") not in taken)
    taken.add(name)
    return name


def weight_bits(weight: Ints) -> int:
    """The width that holds every weight."""
    return signed_bits(int(weight.min(initial=0)), int(weight.max(initial=0)))


def acc_bits(acc: tuple[int, int]) -> int:
    """The width that holds an accumulator, wherever it is on its way from 0."""
    return signed_bits(min(acc[0], 0), max(acc[1], 0))


def sparse_steps(weight: Ints, pe: int, simd: int) -> list[list[list[int]]]:
    """The static schedule of a matrix whose blocks of `simd` weights may be zero.

    For each fold of `pe` rows, its steps; in each step the block that every one of the rows takes. A row that has fewer
    blocks than the others repeats one that is zero for it, or its last with weights of zero: `-1` marks that.
    """
    rows, columns = weight.shape
    used = np.abs(weight).reshape(rows // pe, pe, columns // simd, simd).max(axis=3)
    schedule = []
    for fold in used:
        blocks = [np.flatnonzero(row).tolist() for row in fold]
        length = max(1, *(len(row) for row in blocks))
        schedule.append([[row[i] if i < len(row) else -1 for row in blocks] for i in range(length)])
    return schedule


def _used_blocks(weight: Ints, simd: int) -> Ints:
    """How many blocks of `simd` weights of each row are not all zero, int64[rows]."""
    rows, columns = weight.shape
    used: Ints = (weight.reshape(rows, columns // simd, simd) != 0).any(axis=2).sum(axis=1)
    return used


def _longest(used: Ints, pe: int) -> int:
    """The rows of a fold wait for the one with the most blocks; a fold takes a step at least."""
    return int(np.maximum(used.reshape(-1, pe).max(axis=1), 1).sum())
