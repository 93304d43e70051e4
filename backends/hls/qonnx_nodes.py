"""Nodes of a QONNX model as they are written, and the one thing that grids need: integers rounded and clamped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .requantizer import signed_bits

Floats = NDArray[Any]
DOMAIN = "qonnx.custom_op.general"
_WIDEST = 24
"""Bits of the integers that float32 holds."""


@dataclass(frozen=True)
class QuantType:
    """What a Quant node of scale 1 clamps to."""

    bits: int
    signed: bool
    narrow: bool = False

    @classmethod
    def holding(cls, low: int, high: int) -> QuantType:
        """The fewest bits that hold both; `narrow` leaves out the most negative where that is not one of them."""
        if low >= 0:
            return cls(max(1, high.bit_length()), False)
        bits = signed_bits(low, high)
        return cls(bits, True, low == 1 - (1 << (bits - 1)) and bits > 1)

    @property
    def low(self) -> int:
        """The least value."""
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def high(self) -> int:
        """The greatest value."""
        return (1 << (self.bits - self.signed)) - 1


@dataclass
class Nodes:
    """Appends nodes and constants, each under a name of its own."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def emit(
        self, kind: str, inputs: Sequence[str], *, output: str | None = None, domain: str = "", **given: Any
    ) -> str:
        """Append a node; the name of its result."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **given))
        return name

    def rename(self, name: str, wanted: str) -> None:
        """Call what a node gives by another name; a node of its own where none gives it, or it has that other name."""
        if not any(name in node.output for node in self.nodes) or name in self.renamed.values():
            self.emit("Identity", [self.renamed.get(name, name)], output=wanted)
            return
        self.renamed[name] = wanted
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, own in enumerate(names):
                    names[place] = wanted if own == name else own

    def tensor(self, values: Floats, name: str | None = None) -> str:
        """A constant."""
        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def integers(self, *values: int) -> str:
        """A constant int64[values]."""
        return self.tensor(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant float32[1]: some readers take no scalars."""
        return self.tensor(np.array([value], np.float32))

    def plus(self, name: str, value: int) -> str:
        """A number added, unless it is 0."""
        return self.emit("Add", [name, self.number(value)]) if value else name

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """The same values in another shape."""
        return self.emit("Reshape", [name, self.integers(*shape)])

    def gather(self, name: str, order: Floats) -> str:
        """Every element by its place in the flat tensor."""
        flat = self.reshape(name, (-1,))
        return self.reshape(self.emit("Gather", [flat, self.tensor(order.reshape(-1))], axis=0), order.shape)

    def quant(self, name: str, kind: QuantType, scale: float = 1.0, mode: str = "ROUND") -> str:
        """A Quant node; ROUND is half to even."""
        parameters = [self.number(scale), self.number(0), self.number(kind.bits)]
        options: dict[str, Any] = {"signed": int(kind.signed), "narrow": int(kind.narrow), "rounding_mode": mode}
        return self.emit("Quant", [name, *parameters], domain=DOMAIN, **options)

    def onto_grid(
        self, name: str, low: int, high: int, reach: tuple[float, float], scale: float = 1.0, mode: str = "ROUND"
    ) -> str:
        """Steps of a scale rounded and clamped to [low, high]; integers come out, whatever the scale.

        reach: the least and the greatest that steps can be. A bound that they cannot pass need not be one of a Quant
        node. Where one node has not both bounds, the first rounds, and each other clamps at its end of 0: integers are
        moved there and back, which is exact.
        """
        kind = QuantType.holding(low, high)
        clamps_low, clamps_high = reach[0] < low, reach[1] > high
        if (not clamps_low or kind.low == low) and (not clamps_high or kind.high == high):
            return self._integers(self.quant(name, kind, scale, mode), kind, scale)
        wide = _wide(low, high, reach)
        name = self._integers(self.quant(name, wide, scale, mode), wide, scale)
        span = QuantType(max(1, (high - low).bit_length()), False)
        if clamps_low:
            name = self.quant(self.plus(name, -low), span if span.high == high - low else _unsigned(wide, low))
            if not clamps_high or span.high == high - low:
                return self.plus(name, low)
            name = self.plus(name, low)
        name = self.emit("Mul", [self.plus(name, -high), self.number(-1)])
        name = self.emit("Mul", [self.quant(name, _unsigned(wide, high)), self.number(-1)])
        return self.plus(name, high)

    def _integers(self, name: str, kind: QuantType, scale: float) -> str:
        """What a Quant node of a scale gives, in steps. A product that is nearly an integer is rounded to it."""
        if scale == 1:
            return name
        return self.quant(self.emit("Mul", [name, self.number(1 / scale)]), kind)


def _wide(low: int, high: int, reach: tuple[float, float]) -> QuantType:
    """A type that holds a grid and more, so that what it clamps is clamped again; all that is reached where known."""
    ends = [int(end) for end in reach if math.isfinite(end)]
    bits = signed_bits(min([low, *ends]) - 1, max([high, *ends]) + 1)
    return QuantType(min(bits, _WIDEST), True)


def _unsigned(wide: QuantType, moved: int) -> QuantType:
    """A type without a sign that holds what is 0 or more of another, moved."""
    return QuantType((wide.high - wide.low + abs(moved)).bit_length(), False)
