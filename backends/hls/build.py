"""From a program of the integer stage to a dataflow graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tersor.ir import integer_operators as ops
from tersor.ir.accumulators import accumulator_range, is_accumulator, value_range
from tersor.ir.integer_operators import DEQUANTIZE, QUANTIZE, REQUANTIZE
from tersor.ir.program import Program
from tersor.ir.proofs import Requantization
from tersor.ir.shapes import KEY

from .graph import Graph, Layer, Port, Stream, with_forks
from .requantizer import Ints, Requantizer
from .requantizer_search import cheapest

aten = torch.ops.aten

VIEWS = frozenset(
    {
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.unsqueeze.default,
        aten.permute.default,
        aten.transpose.int,
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
    }
)
"""Operators that name the same values another way. They cost nothing: what reads them follows the order."""

_PADDED: dict[object, tuple[int, int]] = {ops.INT_CONV: (3, 5), ops.INT_SUM_POOL: (1, 4)}
"""Operators that pad with their zero point, and the places of zero point and padding among their arguments."""


class Refusal(Exception):  # noqa: N818  # a reason, which `support` turns into a row; no error reaches a user
    """Why a node has no place in a dataflow graph, and what to do about it."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(frozen=True)
class Value:
    """A value of the program: the stream that carries it, and which of the stream's values each element is."""

    stream: Stream
    order: Ints


@dataclass
class Builder:
    """Builds a graph. `rules` give the layers of an operator; refusals are gathered, so that all are known at once."""

    program: Program
    rules: dict[object, Callable[[Builder, fx.Node], None]]
    values: dict[fx.Node, Value] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    refusals: dict[fx.Node, Refusal] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def build(self) -> Builder:
        """Visit every node, in graph order. What follows from a refused node is left out."""
        for node in self.program.graph.nodes:
            if node.op == "call_function" and not any(source in self._lost for source in node.all_input_nodes):
                try:
                    self._visit(node)
                except Refusal as refusal:
                    self.refusals[node] = refusal
                    self._lost.add(node)
            elif any(source in self._lost for source in node.all_input_nodes):
                self._lost.add(node)
        return self

    def __post_init__(self) -> None:
        self._lost: set[fx.Node] = set()

    def graph(self) -> Graph:
        """The graph, with forks."""
        return with_forks(Graph(tuple(self.layers), tuple(self.inputs), tuple(self.outputs)))

    def _visit(self, node: fx.Node) -> None:
        rule = self.rules.get(node.target)
        if rule is not None:
            rule(self, node)
        elif node.target in VIEWS:
            self._view(node)
        elif not is_accumulator(node):
            raise Refusal(f"{node.target} has no dataflow form")

    def _view(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        value = self.value(source)
        order = node.target(torch.from_numpy(value.order), *node.args[1:], **node.kwargs)  # type: ignore[operator]
        self.values[node] = Value(value.stream, order.numpy())

    # -- reading ---------------------------------------------------------------------------------------------------

    def value(self, node: object) -> Value:
        """The value of a node. Raises Refusal where it is a constant or an accumulator that is not requantized."""
        assert isinstance(node, fx.Node)
        if node not in self.values:
            if self.program.constant(node) is not None:
                raise Refusal("one operand is a constant", "fold it into the convolution before or after")
            raise Refusal(f"it reads %{node.name}, an accumulator that is on no grid")
        return self.values[node]

    def constant(self, argument: object) -> Ints | None:
        """The integers behind a node that reads a tensor of the program."""
        tensor = self.program.constant(argument)
        return None if tensor is None else tensor.detach().to(torch.int64).numpy()

    def shape(self, node: object) -> tuple[int, ...]:
        """The sizes of a value. Raises Refusal where one is dynamic."""
        assert isinstance(node, fx.Node)
        sizes = node.meta[KEY].shape
        if not all(type(size) is int for size in sizes):
            raise Refusal("a size is dynamic", "give Hls(sizes={...}), or trace with fixed sizes")
        return tuple(sizes)

    def image(self, node: object) -> tuple[Stream, tuple[int, int]]:
        """The stream of an image that travels pixel by pixel, and its rows and columns; rows of 1 for a sequence."""
        value, shape = self.value(node), self.shape(node)
        if len(shape) not in (3, 4) or shape[0] != 1:
            raise Refusal(
                f"it reads {list(shape)}: frames come one at a time", "trace with a batch of 1, or a dynamic one"
            )
        channels, plane = shape[1], (1, *shape[2:])[-2:]
        wanted = np.arange(value.stream.count).reshape(*shape[2:], channels)
        if not np.array_equal(np.moveaxis(value.order[0], 0, -1), wanted):
            raise Refusal("its input would have to be stored and sent in another order", "keep channels in dimension 1")
        return value.stream, (plane[0], plane[1])

    def after(self, acc: fx.Node) -> fx.Node | None:
        """The one node that requantizes an accumulator; None where it leaves as an output."""
        users = list(acc.users)
        if len(users) == 1 and users[0].target is REQUANTIZE:
            return users[0]
        if len(users) == 1 and users[0].target is DEQUANTIZE and users[0] in self.program.outputs:
            return None
        raise Refusal(
            "its accumulator is read by something else than one requantize",
            "Quantize(..., coverage=Coverage.EVERYTHING)",
        )

    def requantizer(self, node: fx.Node, channels: int) -> Requantizer:
        """The cheapest proven circuit of a requantize node, for that many channels."""
        multiplier = self.program.constant(node.args[1])
        assert multiplier is not None
        if multiplier.numel() not in (1, channels):
            raise Refusal(
                "its multiplier differs from position to position", "count_include_pad=True, or no padding in the pool"
            )
        return cheapest(Requantization.of(self.program, node))

    def reach(self, acc: fx.Node) -> tuple[int, int]:
        """The least and the greatest value of an accumulator."""
        found = accumulator_range(self.program, acc)
        assert found is not None
        return int(found.low.min()), int(found.high.max())

    # -- writing ---------------------------------------------------------------------------------------------------

    def name(self, node: fx.Node, suffix: str = "") -> str:
        """A name for a layer or stream that no other has, and that C++ takes."""
        plain = re.sub(r"\W", "_", node.name) + suffix
        unique, count = plain, 0
        while unique in self.names:
            count += 1
            unique = f"{plain}_{count}"
        self.names.add(unique)
        return unique

    def stream(self, node: fx.Node, pixels: int, channels: int) -> Stream:
        """A new stream for the values of a node, as wide as they are proven to need."""
        return Stream(self.name(node), node.name, pixels, channels, *self._range(node))

    def accumulators(self, acc: fx.Node, pixels: int, channels: int) -> Stream:
        """A new stream for accumulators that leave as an output."""
        return Stream(self.name(acc), acc.name, pixels, channels, *self.reach(acc))

    def _range(self, node: fx.Node) -> tuple[int, int]:
        """The range of a node's values, with what its readers pad with."""
        low, high = value_range(self.program, node)
        for pad in self._pads(node):
            low, high = min(low, pad), max(high, pad)
        return low, high

    def _pads(self, node: fx.Node) -> list[int]:
        found: list[int] = []
        for user in node.users:
            if (
                user.target in VIEWS or user.target is ops.INT_MAX_POOL
            ):  # what it gives is on the stream of what it takes
                found += self._pads(user)
            elif user.target in _PADDED:
                zero_point, padding = (user.args[place] for place in _PADDED[user.target])
                assert isinstance(zero_point, int)
                found += [zero_point] if any(padding) else []  # type: ignore[arg-type]  # a list, by its schema
        return found

    def place(self, node: fx.Node, stream: Stream, by_axis: int | None = 1) -> None:
        """Say that a stream carries a node's values, its channels along `by_axis`."""
        shape = self.shape(node)
        order = np.arange(stream.count)
        if by_axis is not None and len(shape) > 1:
            axis = by_axis % len(shape)
            moved = [*shape[:axis], *shape[axis + 1 :], shape[axis]]
            self.values[node] = Value(stream, np.moveaxis(order.reshape(moved), -1, axis))
        else:
            self.values[node] = Value(stream, order.reshape(shape))

    def add(self, layer: Layer) -> None:
        """Append a layer."""
        self.layers.append(layer)


def scale_of(program: Program, node: fx.Node) -> Tensor:
    """The scale of a quantize or dequantize node, float32."""
    scale = program.constant(node.args[1])
    assert scale is not None
    return scale.detach()


def is_edge(node: fx.Node) -> bool:
    """Whether a node is done by the host: floats onto a grid, or back."""
    return node.target in (QUANTIZE, DEQUANTIZE)


def integer(value: Any) -> int:
    """An argument that is a number by its schema."""
    assert isinstance(value, int)
    return value
