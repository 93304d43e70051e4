"""What a lowered model does, one kernel call after another. `memory` places the buffers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Affine
from .nests import Nest
from .views import Buffer, Run

Array = NDArray[Any]


@dataclass(frozen=True)
class Walk:
    """A buffer as a kernel walks it."""

    buffer: Buffer
    affine: Affine

    @classmethod
    def whole(cls, buffer: Buffer) -> Walk:
        """All of a buffer."""
        layout = buffer.layout
        return cls(buffer, Affine(layout.first, layout.block_bytes, layout.row_bytes))


@dataclass(frozen=True)
class Requantize:
    """Onto a grid: multipliers float32[channels] or [1], zero point, clamp; `magic` where the proof allows it."""

    multiplier: Array
    zero_point: int
    quant_min: int
    quant_max: int
    magic: bool = False


@dataclass(frozen=True)
class Step:
    """One kernel call. `node` is the program's node that it computes, `macs` what that takes in the dense model."""

    node: str
    reads: tuple[Walk, ...]
    writes: Walk | None
    macs: int = field(default=0, kw_only=True)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Every buffer that it touches."""
        return (*(walk.buffer for walk in self.reads), *((self.writes.buffer,) if self.writes else ()))


@dataclass(frozen=True)
class Fill(Step):
    """A buffer's border, or all of it, set to a value."""

    value: int = 0
    border_only: bool = False


@dataclass(frozen=True)
class QuantizeInput(Step):
    """A float input onto its grid."""

    index: int = 0
    scale: float = 1.0
    zero_point: int = 0
    quant_min: int = -128
    quant_max: int = 127


@dataclass(frozen=True)
class Gather(Step):
    """Rows of a table int8[rows, width], by the numbers of an integer input of so many bytes each.

    positions: where in the input each number stands, int32; one below 0 is a number itself: -1 - number.
    """

    index: int = 0
    bytes: int = 8
    positions: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    table: Array = field(default_factory=lambda: np.zeros((0, 0), np.int8))


@dataclass(frozen=True)
class Copy(Step):
    """Bytes from each buffer that is read: nested loops, or single runs where there is no order in it."""

    parts: tuple[tuple[Nest, ...] | tuple[Run, ...], ...] = ()


@dataclass(frozen=True)
class Phases(Step):
    """A plane divided by its strides, for a convolution that is strided."""

    stride: tuple[int, int] = (1, 1)
    plane: tuple[int, int] = (1, 1)
    blocks: int = 1
    wanted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sum(Step):
    """Two tensors on grids of their own added onto a third. scales: float32[3]; zero points of a, b and the result."""

    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    zero_points: tuple[int, int, int] = (0, 0, 0)
    quant_min: int = -128
    quant_max: int = 127


@dataclass(frozen=True)
class Convolution(Step):
    """Dense, sparse, or `depthwise`; a linear layer is one of a single row. weight: int8[out, in, kh, kw].

    residual: a sum with what is read second, done to the output before it is written; its first operand is the output.
    """

    weight: Array = field(default_factory=lambda: np.zeros((0, 0, 1, 1), np.int8))
    bias: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    input_zero_point: int = 0
    taps: Array = field(default_factory=lambda: np.zeros(1, np.int32))
    rows: int = 1
    width: int = 1
    requantize: Requantize | None = None
    kernel: str = "dense"
    reason: str = ""
    residual: Sum | None = None


@dataclass(frozen=True)
class Product(Step):
    """Two tensors multiplied and requantized."""

    zero_points: tuple[int, int] = (0, 0)
    requantize: Requantize | None = None


@dataclass(frozen=True)
class Lookup(Step):
    """Each value through a table int8[256]."""

    table: Array = field(default_factory=lambda: np.zeros(256, np.int8))


@dataclass(frozen=True)
class Pool(Step):
    """Windows of taps, as a convolution has them: `max`, `average`, or `global` for a whole plane of rows x width."""

    kind: str = "max"
    taps: Array = field(default_factory=lambda: np.zeros(1, np.int32))
    rows: int = 1
    width: int = 1
    count: int = 1
    input_zero_point: int = 0
    requantize: Requantize | None = None


@dataclass(frozen=True)
class CutAverage(Step):
    """Averages of windows that the plane's edge cuts, with a multiplier for each position."""

    plane: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    input_zero_point: int = 0
    requantize: Requantize | None = None


@dataclass(frozen=True)
class ToBlocks(Step):
    """Row-major channels, rows and pixels into blocks of channels."""


@dataclass(frozen=True)
class FromBlocks(Step):
    """The other way; `channels`, `rows` and `width` of what is read."""

    channels: int = 1
    rows: int = 1
    width: int = 1


@dataclass(frozen=True)
class MatMul(Step):
    """Batched products of two tensors: [batch, m, k] x [batch, k, n]. Before it, one that `packs` the right side.

    transposed: the right side lies as [batch, n, k].
    """

    sizes: tuple[int, int, int, int] = (1, 1, 1, 1)
    transposed: bool = False
    packs: bool = False
    zero_points: tuple[int, int] = (0, 0)
    requantize: Requantize | None = None


@dataclass(frozen=True)
class Softmax(Step):
    """`tersor::int_softmax` over rows that lie one after another. hidden: bool[some rows, length], which repeat."""

    rows: int = 1
    length: int = 1
    exponentials: Array = field(default_factory=lambda: np.zeros(256, np.int32))
    numerator: int = 0
    zero_point: int = 0
    quant_min: int = -128
    quant_max: int = 127
    hidden: Array | None = None


@dataclass(frozen=True)
class Normalize(Step):
    """`tersor::int_normalize` of rows that lie one after another, requantized.

    weight, bias: int32[parameters], for runs of so many values; they begin again where they end.
    """

    rows: int = 1
    length: int = 1
    run: int = 1
    parameters: int = 1
    weight: Array | None = None
    bias: Array | None = None
    input_zero_point: int = 0
    epsilon: int = 0
    center: bool = True
    requantize: Requantize | None = None


@dataclass(frozen=True)
class DequantizeOutput(Step):
    """`count` int8 to a float output, row-major."""

    count: int = 0
    index: int = 0
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True)
class Place(Step):
    """Where the greatest value of each row stands, or the `least`, to an output of so many bytes a number."""

    index: int = 0
    bytes: int = 8
    rows: int = 1
    length: int = 1
    least: bool = False


@dataclass(frozen=True)
class LinearOutput(Step):
    """A linear layer whose accumulators become a float output. scale: float32[out] or [1]."""

    index: int = 0
    weight: Array = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    bias: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    input_zero_point: int = 0
    rows: int = 1
    scale: Array = field(default_factory=lambda: np.ones(1, np.float32))
