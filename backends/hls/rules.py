"""What each operator of the integer stage becomes. A table: a line, and a short function, teaches a new one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from tersor.ir import integer_operators as ops
from tersor.ir.accumulators import value_range
from tersor.ir.macs import multiply_accumulates
from tersor.ir.program import Program
from tersor.ir.requantize_forms import Ints

from ..grouped_convolution import ungrouped
from .build import MOVES, Builder, Image, Refusal, Value, integer, pixel_by_pixel, scale_of
from .graph import (
    Add,
    Concat,
    Depthwise,
    Geometry,
    GlobalPool,
    Lookup,
    MatrixVector,
    MaxPool,
    Multiply,
    Port,
    Select,
    Stream,
    SumPool,
    Window,
)
from .orders import Masks, channel_places, channels_last
from .pair_sum import PairSum, proven_sum
from .requantizer import Requantizer

aten = torch.ops.aten

_IMAGES = frozenset({ops.INT_CONV, ops.INT_MAX_POOL, ops.INT_SUM_POOL, ops.INT_SUM})
_TABLE_START = -128


def _macs(node: fx.Node) -> int:
    return multiply_accumulates(node, lambda tensor: tuple(int(size) for size in tensor.shape))


# -- edges -----------------------------------------------------------------------------------------------------------


def _quantize(b: Builder, node: fx.Node) -> None:
    source, _, zero_point, low, high = node.args
    if source not in b.program.placeholders:
        raise Refusal(f"it quantizes %{getattr(source, 'name', source)}, a float that is computed on the way")
    shape = b.shape(node)
    axis = 1 if len(shape) == 4 or (len(shape) == 3 and _reads_images(node)) else -1
    channels = shape[axis] if shape else 1
    stream = b.stream(node, math.prod(shape) // channels, channels)
    b.place(node, stream, axis)
    index = b.program.placeholders.index(source)  # type: ignore[arg-type]  # tested above
    order, scale = b.values[node].order.reshape(-1), tuple(scale_of(b.program, node).reshape(-1).tolist())
    grid = integer(zero_point), None, integer(low), integer(high)
    b.inputs.append(Port(stream, index, shape, order, scale, *grid))


def _reads_images(node: fx.Node) -> bool:
    return any(user.target in _IMAGES or (user.target in MOVES and _reads_images(user)) for user in node.users)


def _dequantize(b: Builder, node: fx.Node) -> None:
    q, _, zero_point, axis = node.args
    if any(user.op != "output" for user in node.users):
        return  # a float island reads it, which is refused by name
    value = b.whole(b.value(q))
    scale = tuple(scale_of(b.program, node).reshape(-1).tolist())
    assert axis is None or isinstance(axis, int)
    for index, output in enumerate(b.program.outputs):
        if output is node:
            order = value.order.reshape(-1)
            b.outputs.append(Port(value.stream, index, b.shape(node), order, scale, integer(zero_point), axis))


# -- sums of products ------------------------------------------------------------------------------------------------


def _requantize(b: Builder, node: fx.Node) -> None:
    acc = node.args[0]
    assert isinstance(acc, fx.Node)
    if acc not in b.values:
        raise Refusal(f"it reads %{acc.name}, which is no accumulator of a layer")
    b.values[node] = b.values[acc]


def _result(b: Builder, acc: fx.Node, pixels: int, channels: int) -> tuple[Stream, Requantizer | None, fx.Node]:
    """The stream of what an accumulator becomes, and how; its values are those of the node given back."""
    node = b.after(acc)
    if node is None:
        return b.accumulators(acc, pixels, channels), None, acc
    return b.stream(node, pixels, channels), b.requantizer(node, channels), node


def _conv(b: Builder, acc: fx.Node) -> None:
    x, weight, bias, zero_point, stride, padding, dilation, groups = acc.args
    filters = b.constant(weight)
    assert filters is not None
    filters = filters[:, :, None, :] if filters.ndim == 3 else filters
    image = b.image(x)
    geometry = _geometry(b, acc, image, list(filters.shape[2:]), stride, padding, dilation)
    stream, outputs, count = image.stream, len(filters), integer(groups)
    depthwise = count == stream.channels == outputs and count > 1
    windows = _windows(b, acc, image, geometry, integer(zero_point), any(padding), depthwise)  # type: ignore[arg-type]  # a list
    y, requantizer, node = _result(b, acc, math.prod(geometry.out), outputs)
    move = stream.low - integer(zero_point)
    if depthwise:  # a channel stays in its place
        rows = image.places
        matrix, places = filters.reshape(outputs, -1)[rows], rows
    else:
        matrix = ungrouped(filters, count)[:, image.places].transpose(0, 2, 3, 1).reshape(outputs, -1)
        rows = places = np.arange(outputs)
    folded = _folded_bias(b, bias, rows, matrix, move)
    requantizer = requantizer and requantizer.of_channels(rows)
    name, kind = b.name(acc, "_unit"), Depthwise if depthwise else MatrixVector
    reach = _sums(matrix, folded, stream)
    b.add(kind(name, node.name, (windows,), (y,), matrix, folded, requantizer, reach, macs=_macs(acc)))
    b.place_image(acc, y, places)


def _geometry(
    b: Builder, node: fx.Node, image: Image, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> Geometry:
    """Kernel positions, with the padding of the operator and with that of its input."""
    out = (1, *b.shape(node)[2:])[-2:]
    above, left = (own + more for own, more in zip(_pair(padding, 0), image.border, strict=True))
    return Geometry(
        image.plane, _pair(kernel, 1), _pair(stride, 1), (above, left), _pair(dilation, 1), (out[0], out[1])
    )


def _folded_bias(b: Builder, bias: Any, rows: Ints, matrix: Ints, move: int) -> Ints:
    """The bias for what travels: sum((q - zp) * w) = sum((q - low) * w) + (low - zp) * sum(w).

    rows: which output each row of the matrix is.
    """
    given = b.constant(bias)
    folded: Ints = (0 if given is None else given[rows]) + move * matrix.sum(axis=1)
    return folded


def _sums(matrix: Ints, bias: Ints, x: Stream) -> tuple[int, int]:
    """The range of every partial sum, whatever the stream carries: what travels is 0 or more."""
    most = x.high - x.low
    low, high = bias + most * np.minimum(matrix, 0).sum(1), bias + most * np.maximum(matrix, 0).sum(1)
    return int(low.min(initial=0)), int(high.max(initial=0))


def _windows(
    b: Builder, acc: fx.Node, image: Image, geometry: Geometry, pad: int, pads: bool, by_channel: bool
) -> Stream:
    """The stream of what lies under each kernel position; the input itself where that is the same.

    pad: what the operator pads with, where it `pads`. Its input may have been padded before.
    """
    x = image.stream
    if pads and image.fill not in (None, pad):
        raise Refusal(f"it pads with {pad} what is padded with {image.fill}", "pad once")
    if geometry.is_pointwise:
        return _every(b, acc, x, geometry)
    fill = pad if image.fill is None else image.fill
    name = b.name(acc, "_window")
    y = Stream(name, x.node, math.prod(geometry.out) * geometry.taps, x.channels, x.low, x.high, side=True)
    b.add(Window(f"{name}s", acc.name, (x,), (y,), geometry, fill - x.low, by_channel))
    return y


def _every(b: Builder, acc: fx.Node, x: Stream, geometry: Geometry) -> Stream:
    """Every so-manyth pixel."""
    if geometry.stride == (1, 1) and geometry.out == geometry.plane:
        return x
    rows, columns = (np.zeros(size, np.bool_) for size in geometry.plane)
    for mask, out, stride in zip((rows, columns), geometry.out, geometry.stride, strict=True):
        mask[: out * stride : stride] = True
    name = b.name(acc, "_pixels")
    y = Stream(name, x.node, math.prod(geometry.out), x.channels, x.low, x.high, side=True)
    b.add(Select(f"{name}_select", acc.name, (x,), (y,), Masks(rows, columns, np.ones(x.channels, np.bool_))))
    return y


def _pair(values: Any, missing: int) -> tuple[int, int]:
    """One or two numbers as those of rows and of columns."""
    values = [int(value) for value in values]
    return (missing, values[0]) if len(values) == 1 else (values[0], values[1])


def _linear(b: Builder, acc: fx.Node) -> None:
    x, weight, bias, zero_point = acc.args
    matrix, given = b.constant(weight), b.value(x)
    assert matrix is not None
    outputs, inputs = matrix.shape
    order = given.order.reshape(-1, inputs)
    value = b.arrange(Value(given.stream, order, given.fill), pixel_by_pixel, np.arange(order.size))
    places = channel_places(value.order)
    assert places is not None, "what is arranged is arranged"
    stream = replace(value.stream, pixels=len(order), channels=inputs)
    columns = matrix[:, places]
    y, requantizer, node = _result(b, acc, len(order), outputs)
    folded = _folded_bias(b, bias, np.arange(outputs), columns, stream.low - integer(zero_point))
    unit = (stream,), (y,), columns, folded, requantizer, _sums(columns, folded, stream)
    b.add(MatrixVector(b.name(acc, "_unit"), node.name, *unit, macs=_macs(acc)))
    b.place(acc, y, -1)


# -- pools -----------------------------------------------------------------------------------------------------------


def _max_pool(b: Builder, node: fx.Node) -> None:
    x, kernel, stride, padding, dilation, _ = node.args
    image = b.image(x)
    geometry, stream = _geometry(b, node, image, kernel, stride, padding, dilation), image.stream
    windows = _windows(b, node, image, geometry, stream.low, any(padding), True)  # type: ignore[arg-type]  # a list
    y = Stream(b.name(node), node.name, math.prod(geometry.out), stream.channels, stream.low, stream.high)
    b.add(MaxPool(b.name(node, "_unit"), node.name, (windows,), (y,), geometry.taps))
    b.place_image(node, y, image.places)


def _sum_pool(b: Builder, acc: fx.Node) -> None:
    x, zero_point, kernel, stride, padding, _ = acc.args
    image = b.image(x)
    geometry, stream = _geometry(b, acc, image, kernel, stride, padding, [1] * len(kernel)), image.stream  # type: ignore[arg-type]  # a list
    windows = _windows(b, acc, image, geometry, integer(zero_point), True, True)
    y, requantizer, node = _result(b, acc, math.prod(geometry.out), stream.channels)
    if requantizer is None:
        raise Refusal("its accumulator is wanted in float", "Quantize(..., coverage=Coverage.EVERYTHING)")
    bias = geometry.taps * (stream.low - integer(zero_point))
    reach = bias, bias + geometry.taps * (stream.high - stream.low)
    unit = (windows,), (y,), geometry.taps, bias, requantizer, reach
    b.add(SumPool(b.name(acc, "_unit"), node.name, *unit))
    b.place_image(acc, y, image.places)


def _sum(b: Builder, acc: fx.Node) -> None:
    x, dims, _, zero_point = acc.args
    given, shape = b.value(x), b.shape(x)
    summed = sorted(integer(dim) % len(shape) for dim in dims)  # type: ignore[union-attr]  # a list, by its schema
    kept = [dim for dim in range(len(shape)) if dim not in summed]
    pixels = math.prod(shape[dim] for dim in summed)
    order = given.order.transpose(summed + kept).reshape(pixels, -1)
    value = b.arrange(Value(given.stream, order, given.fill), _in_any_pixel, np.arange(order.size))
    places, channels = _channel_of(value.order)[0], order.shape[1]
    y, requantizer, node = _result(b, acc, 1, channels)
    if requantizer is None:
        raise Refusal("its accumulator is wanted in float", "Quantize(..., coverage=Coverage.EVERYTHING)")
    bias = pixels * (value.stream.low - integer(zero_point))
    reach = bias, bias + pixels * (value.stream.high - value.stream.low)
    stream = replace(value.stream, pixels=pixels, channels=channels)
    b.add(GlobalPool(b.name(acc, "_unit"), node.name, (stream,), (y,), bias, requantizer, reach))
    b.values[acc] = Value(y, np.argsort(places).reshape(b.shape(acc)))


def _channel_of(order: Ints) -> Ints:
    """Of int64[pixels, channels]: the channel of every value, as they travel, int64[pixels, channels]."""
    channels = np.empty(order.size, np.int64)
    channels[order.reshape(-1)] = np.tile(np.arange(order.shape[1]), len(order))
    return channels.reshape(order.shape)


def _in_any_pixel(order: Ints) -> bool:
    """Whether the values of all pixels come one pixel after the other, whichever is first; channels alike in each."""
    channels = _channel_of(order)
    return bool((channels == channels[0]).all()) and len(set(channels[0].tolist())) == order.shape[1]


# -- element by element ----------------------------------------------------------------------------------------------


def _two(b: Builder, node: fx.Node) -> tuple[Stream, Stream, Ints]:
    """Two streams whose values belong together one by one. One of them is sent again, or in the order of the other."""
    given = [b.value(source) for source in node.args[:2]]
    sides = [Value(value.stream, np.broadcast_to(value.order, b.shape(node)), value.fill) for value in given]
    first = 0 if sides[0].order.size == given[0].order.size else 1
    anchor = b.whole(sides[first])
    other = b.arrange(sides[1 - first], lambda order: np.array_equal(order, anchor.order), anchor.order)
    other_stream = replace(other.stream, pixels=anchor.stream.pixels, channels=anchor.stream.channels)
    streams = anchor.stream, other_stream
    return streams[first], streams[1 - first], anchor.order


def _add(b: Builder, node: fx.Node) -> None:
    left, right, order = _two(b, node)
    y = b.stream(node, left.pixels, left.channels)
    pair = _sum_over(node, (left.low, left.high), (right.low, right.high))
    b.add(Add(b.name(node, "_unit"), node.name, (left, right), (y,), pair))
    b.values[node] = Value(y, order)


def sum_of(program: Program, node: fx.Node) -> PairSum:
    """The integer form of an `int_add`, proven on all pairs of values that its operands can have."""
    return _sum_over(node, *(value_range(program, source) for source in node.args[:2]))


def _sum_over(node: fx.Node, *ranges: tuple[int, int]) -> PairSum:
    scale_a, zero_a, scale_b, zero_b, scale, *grid = node.args[2:]
    scales, zeros = tuple(map(float, (scale_a, scale_b, scale))), (integer(zero_a), integer(zero_b))  # type: ignore[arg-type]  # numbers, by its schema
    return proven_sum(ranges, scales, zeros, tuple(map(integer, grid)))


def _mul(b: Builder, acc: fx.Node) -> None:
    constants = [b.constant(source) for source in acc.args[:2]]
    if any(constant is not None for constant in constants):
        _scale(b, acc, constants[0] is not None)
        return
    left, right, order = _two(b, acc)
    zero_a, zero_b = integer(acc.args[2]), integer(acc.args[3])
    y, requantizer, node = _result(b, acc, left.pixels, left.channels)
    if requantizer is None:
        raise Refusal("its product is wanted in float", "Quantize(..., coverage=Coverage.EVERYTHING)")
    unit = (left, right), (y,), (left.low - zero_a, right.low - zero_b), requantizer, b.reach(acc)
    b.add(Multiply(b.name(acc, "_unit"), node.name, *unit))
    b.values[acc] = Value(y, order)


def _scale(b: Builder, acc: fx.Node, constant_first: bool) -> None:
    """A product with a constant is a depthwise convolution of one tap; each value is a channel where pixels differ."""
    places = (1, 0) if constant_first else (0, 1)
    (x, factor), (zero_x, zero_factor) = ([acc.args[start + place] for place in places] for start in (0, 2))
    source, given = b.value(x), b.constant(factor)
    assert given is not None
    value = b.whole(Value(source.stream, np.broadcast_to(source.order, b.shape(acc)), source.fill))
    factors = np.zeros(value.stream.count, np.int64)
    factors[value.order.reshape(-1)] = np.broadcast_to(given, value.order.shape).reshape(-1) - integer(zero_factor)
    rows = factors.reshape(value.stream.pixels, value.stream.channels)
    if (rows != rows[0]).any():
        rows = factors[None]
    matrix = rows[0][:, None]
    y, requantizer, node = _result(b, acc, value.stream.count // len(matrix), len(matrix))
    folded = _folded_bias(b, None, np.arange(len(matrix)), matrix, value.stream.low - integer(zero_x))
    reach = _sums(matrix, folded, value.stream)
    unit = (value.stream,), (y,), matrix, folded, requantizer, reach
    b.add(Depthwise(b.name(acc, "_unit"), node.name, *unit))
    b.values[acc] = Value(y, value.order)


def _lookup(b: Builder, node: fx.Node) -> None:
    value, table = b.value(node.args[0]), b.constant(node.args[1])
    assert table is not None
    x = value.stream
    y = b.stream(node, x.pixels, x.channels)
    entries = table[np.arange(x.low, x.high + 1) - _TABLE_START]
    entries = np.clip(entries, y.low, y.high) - y.low  # beyond what is read: padding of another reader
    b.add(Lookup(b.name(node, "_unit"), node.name, (x,), (y,), entries))
    fill = None if value.fill is None else int(table[value.fill - _TABLE_START])
    b.values[node] = Value(y, value.order, fill)


def _cat(b: Builder, node: fx.Node) -> None:
    sources = list(node.args[0])  # type: ignore[arg-type]  # a list, by its schema
    axis = (integer(node.args[1]) if len(node.args) > 1 else 0) % len(b.shape(node))
    values = [b.whole(b.value(source)) for source in sources]
    found = values[0]
    for index, value in enumerate(values[1:], start=1):
        found = _joined(b, node, found, value, axis, last=index == len(values) - 1)
    b.values[node] = found


def _joined(b: Builder, node: fx.Node, left: Value, right: Value, axis: int, last: bool) -> Value:
    """Two streams as one: as often a part of each as lets channels, rows or columns join in the order of an image."""
    sizes = left.stream.count, right.stream.count
    shape = np.concatenate([left.order, right.order], axis).shape
    leading = math.prod(shape[2:axis]) if len(shape) == 4 and axis > 1 else 1
    choices = [math.gcd(left.stream.pixels, right.stream.pixels), leading, 1]
    joins = [(rounds, _join(left.order, right.order, sizes, rounds, axis)) for rounds in choices]
    image = channels_last(shape)
    rounds, order = next((join for join in joins if np.array_equal(join[1], image)), joins[0])
    channels = shape[1] if len(shape) in (3, 4) and order.size % shape[1] == 0 else order.size // rounds
    low, high = min(left.stream.low, right.stream.low), max(left.stream.high, right.stream.high)
    low, high = b.padded_range(node, low, high) if last else (low, high)
    name = b.name(node, "" if last else "_part")
    y = Stream(name, node.name, order.size // channels, channels, low, high, side=not last)
    b.add(Concat(b.name(node, "_unit"), node.name, (left.stream, right.stream), (y,), rounds))
    return Value(y, order)


def _join(left: Ints, right: Ints, sizes: tuple[int, int], rounds: int, axis: int) -> Ints:
    """The order of two joined values, where so many times a part of each is sent."""
    parts = [size // rounds for size in sizes]
    moved = [
        order // part * sum(parts) + order % part + before
        for order, part, before in zip((left, right), parts, (0, parts[0]), strict=True)
    ]
    return np.concatenate(moved, axis)


RULES: dict[object, Callable[[Builder, fx.Node], None]] = {
    ops.QUANTIZE: _quantize,
    ops.DEQUANTIZE: _dequantize,
    ops.REQUANTIZE: _requantize,
    ops.INT_CONV: _conv,
    ops.INT_LINEAR: _linear,
    ops.INT_MAX_POOL: _max_pool,
    ops.INT_SUM_POOL: _sum_pool,
    ops.INT_SUM: _sum,
    ops.INT_ADD: _add,
    ops.INT_MUL: _mul,
    ops.INT_LOOKUP: _lookup,
    aten.cat.default: _cat,
}
