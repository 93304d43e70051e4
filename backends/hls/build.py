"""From a program of the integer stage to a dataflow graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from tersor.ir import integer_operators as ops
from tersor.ir.accumulators import accumulator_range, value_range
from tersor.ir.integer_operators import DEQUANTIZE, REQUANTIZE
from tersor.ir.movement import MOVEMENTS
from tersor.ir.program import Program
from tersor.ir.proofs import Requantization
from tersor.ir.requantize_forms import Ints
from tersor.ir.shapes import KEY

from .graph import Constant, Graph, Layer, Port, Reorder, Select, Stream, with_forks
from .orders import NOTHING, Masks, channel_places, channels_last, inside, is_whole, run_lanes
from .requantizer import Requantizer
from .requantizer_search import cheapest

aten = torch.ops.aten

MOVES = frozenset({*MOVEMENTS, aten.alias.default, aten.constant_pad_nd.default, ops.INT_RESIZE_NEAREST})
"""Operators that move values. What reads them follows the order, and takes a select or a reorder where it has to."""

_PADDED: dict[object, tuple[int, int]] = {ops.INT_CONV: (3, 5), ops.INT_SUM_POOL: (1, 4)}
"""Operators that pad with their zero point, and the places of zero point and padding among their arguments."""


_EVERYTHING = "Quantize(..., coverage=Coverage.EVERYTHING)"
_ELSEWHERE = "replace it in the model, or lower to neon or onnxruntime"


class Refusal(Exception):  # noqa: N818  # a reason, which `support` turns into a row; no error reaches a user
    """Why a node has no place in a dataflow graph, and what to do about it."""

    def __init__(self, reason: str, hint: str = _ELSEWHERE) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(frozen=True)
class Value:
    """A value of the program: the stream that carries it, and which of the stream's values each element is.

    fill: what stands where no value of the stream does, in padding.
    """

    stream: Stream
    order: Ints
    fill: int | None = None


@dataclass(frozen=True)
class Image:
    """A stream that carries an image pixel by pixel: rows and columns, and which channel travels at each place.

    border: rows above and columns to the left that padding adds, and `fill` what it consists of.
    """

    stream: Stream
    plane: tuple[int, int]
    places: Ints
    border: tuple[int, int]
    fill: int | None


@dataclass
class Builder:
    """Builds a graph. `rules` give the layers of an operator; refusals are gathered, so that all are known at once."""

    program: Program
    rules: dict[object, Callable[[Builder, fx.Node], None]]
    values: dict[fx.Node, Value] = field(default_factory=dict)
    pieces: dict[fx.Node, list[Value]] = field(default_factory=dict)
    arranged: dict[tuple[str, bytes], Value] = field(default_factory=dict)
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
        elif node.target in MOVES:
            self._move(node)
        else:
            raise Refusal(f"{node.target} has no dataflow form")

    def _move(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if node.target is operator.getitem:
            self.values[node] = self.pieces[source][integer(node.args[1])]
            return
        value = self.value(source)
        fill = integer(node.args[2]) if node.target is aten.constant_pad_nd.default else value.fill
        if value.fill not in (None, fill):
            raise Refusal("it pads what is padded with another value", "pad once")
        found = moved(self.program, node, value.order)
        if isinstance(found, list):
            self.pieces[node] = [Value(value.stream, order, fill) for order in found]
        else:
            self.values[node] = Value(value.stream, found, fill)

    # -- reading ---------------------------------------------------------------------------------------------------

    def value(self, node: object) -> Value:
        """The value of a node; a constant is sent in every frame. Raises Refusal where it is on no grid."""
        assert isinstance(node, fx.Node)
        if node not in self.values:
            given = self.constant(node)
            if given is None:
                raise Refusal(f"it reads %{node.name}, an accumulator that is on no grid", _EVERYTHING)
            self.values[node] = self._sent(node, given)
        return self.values[node]

    def _sent(self, node: fx.Node, given: Ints) -> Value:
        """A tensor of the program as a stream."""
        order = channels_last(given.shape)
        values = np.empty(given.size, np.int64)
        values[order.reshape(-1)] = given.reshape(-1)
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        channels = given.shape[1] if given.ndim == 4 else given.shape[-1] if given.ndim else 1
        y = Stream(self.name(node), node.name, given.size // channels, channels, low, high)
        self.add(Constant(f"{y.name}_source", node.name, (), (y,), values - low))
        return Value(y, order)

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

    def image(self, node: object) -> Image:
        """An image that travels pixel by pixel; a sequence is one of a single row. Raises Refusal."""
        value, shape = self.value(node), self.shape(node)
        if len(shape) > 4:
            raise Refusal(f"it reads {list(shape)}: images have two dimensions beside channels, and no more")
        if len(shape) < 3 or shape[0] != 1:
            raise Refusal(
                f"it reads {list(shape)}: frames come one at a time", "trace with a batch of 1, or a dynamic one"
            )
        order = np.moveaxis(value.order.reshape(shape[1], *(1, *shape[2:])[-2:]), 0, -1)
        spans = inside(order)
        if spans is None:
            raise Refusal("its input is padded along channels, or with gaps", "pad rows and columns alone")
        rows, columns = spans
        plane = order[rows, columns]
        found = self.arrange(Value(value.stream, plane.reshape(-1, shape[1])), pixel_by_pixel, np.arange(plane.size))
        places = channel_places(found.order)
        assert places is not None, "what is arranged is arranged"
        stream = replace(found.stream, pixels=plane.shape[0] * plane.shape[1], channels=shape[1])
        return Image(stream, plane.shape[:2], places, (rows.start, columns.start), value.fill)

    def arrange(self, value: Value, accepts: Callable[[Ints], bool], wanted: Ints) -> Value:
        """The value on a stream in whose order `accepts` finds it, all of that stream's values in use.

        The stream as it is; else some of its values; else all in the order `wanted`, of as many elements. Raises
        Refusal where padding is among them.
        """
        if (value.order == NOTHING).any():
            raise Refusal("it reads what is padded", "pad in front of a convolution or a pool")
        if is_whole(value.order, value.stream.count):
            if accepts(value.order):
                return value
        elif (some := _some(value)) is not None and accepts(some[1]):
            return self._once(value, some[0].kept, lambda name: self._select(value.stream, some[0], name), some[1])
        sequence = np.empty(value.order.size, np.int64)
        sequence[wanted.reshape(-1)] = value.order.reshape(-1)
        order = wanted.reshape(value.order.shape)
        return self._once(value, sequence, lambda name: self._reorder(value.stream, sequence, name), order)

    def whole(self, value: Value) -> Value:
        """The value on a stream all of whose values are elements, one each."""
        return self.arrange(value, lambda _: True, channels_last(value.order.shape))

    def _once(self, value: Value, key: NDArray[Any], make: Callable[[str], Stream], order: Ints) -> Value:
        """What is arranged alike is arranged once."""
        whole_key = value.stream.name, key.tobytes()
        if whole_key not in self.arranged:
            stream = make(self.unique(f"{value.stream.name}_part"))
            self.arranged[whole_key] = Value(stream, order)
        return Value(self.arranged[whole_key].stream, order)

    def _select(self, x: Stream, masks: Masks, name: str) -> Stream:
        channels = int(masks.channels.sum())
        y = replace(x, name=name, pixels=int(masks.kept.sum()) // channels, channels=channels, side=True)
        self.add(Select(f"{name}_select", x.node, (x,), (y,), masks))
        return y

    def _reorder(self, x: Stream, sequence: Ints, name: str) -> Stream:
        channels = x.channels if len(sequence) % x.channels == 0 else run_lanes(sequence, x.count)
        y = replace(x, name=name, pixels=len(sequence) // channels, channels=channels, side=True)
        self.add(Reorder(f"{name}_reorder", x.node, (x,), (y,), sequence))
        return y

    def after(self, acc: fx.Node) -> fx.Node | None:
        """The one node that requantizes an accumulator; None where it leaves as an output."""
        users = list(acc.users)
        if len(users) == 1 and users[0].target is REQUANTIZE:
            return users[0]
        if len(users) == 1 and users[0].target is DEQUANTIZE and users[0] in self.program.outputs:
            return None
        raise Refusal(
            "its accumulator is read by something else than one requantize",
            _EVERYTHING,
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
        return self.unique(re.sub(r"\W", "_", node.name) + suffix)

    def unique(self, plain: str) -> str:
        """A name that no other has, like the one given."""
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
        return self.padded_range(node, *value_range(self.program, node))

    def padded_range(self, node: fx.Node, low: int, high: int) -> tuple[int, int]:
        """A range with what a node's readers pad with."""
        for pad in self._pads(node):
            low, high = min(low, pad), max(high, pad)
        return low, high

    def _pads(self, node: fx.Node) -> list[int]:
        found: list[int] = []
        for user in node.users:
            if user.target is aten.constant_pad_nd.default:
                found.append(integer(user.args[2]))
            if user.target in MOVES or user.target is ops.INT_MAX_POOL:  # it gives what it takes
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

    def place_image(self, node: fx.Node, stream: Stream, places: Ints) -> None:
        """Say that a stream carries an image; `places`: which channel travels at each place of a pixel."""
        self.place(node, stream)
        value = self.values[node]
        self.values[node] = Value(stream, value.order[:, np.argsort(places)])

    def add(self, layer: Layer) -> None:
        """Append a layer."""
        self.layers.append(layer)


def moved(program: Program, node: fx.Node, order: Ints) -> Ints | list[Ints]:
    """The order of what an operator that moves data gives: the operator itself, on places instead of values."""
    places = torch.from_numpy(np.array(order))
    if node.target is ops.INT_RESIZE_NEAREST:
        return _resized(node, places.to(torch.float64))  # which torch resizes, and which holds every place
    if node.target is aten.constant_pad_nd.default:
        padded: Ints = aten.constant_pad_nd.default(places, node.args[1], NOTHING).numpy()
        return padded
    rest: Any = fx.node.map_arg(node.args[1:], program.constant)
    result = node.target(places, *rest, **node.kwargs)  # type: ignore[operator]  # an operator of MOVES
    if isinstance(result, list | tuple):
        return [part.numpy() for part in result]
    order_of: Ints = result.numpy()
    return order_of


def _resized(node: fx.Node, places: Tensor) -> Ints:
    size, scales = node.args[1], node.args[2] if len(node.args) > 2 else None
    if size is None:
        result = aten.upsample_nearest2d.vec(places, None, scales)
    else:
        result = aten.upsample_nearest2d.default(places, size, *(scales or (None, None)))  # type: ignore[misc]  # a list
    order: Ints = result.long().numpy()
    return order


def _some(value: Value) -> tuple[Masks, Ints] | None:
    """What a select keeps of a stream, and the order of what it keeps; None where elements repeat or masks cannot."""
    used = np.zeros(value.stream.count, np.bool_)
    used[value.order] = True
    if int(used.sum()) != value.order.size:
        return None
    masks = Masks.of(used, value.stream.channels)
    return None if masks is None else (masks, np.cumsum(used)[value.order] - 1)


def pixel_by_pixel(order: Ints) -> bool:
    """Whether int64[pixels, channels] travels pixel by pixel, channels in the same places in each."""
    return channel_places(order) is not None


def scale_of(program: Program, node: fx.Node) -> Tensor:
    """The scale of a quantize or dequantize node, float32."""
    scale = program.constant(node.args[1])
    assert scale is not None
    return scale.detach()


def integer(value: Any) -> int:
    """An argument that is a number by its schema."""
    assert isinstance(value, int)
    return value
