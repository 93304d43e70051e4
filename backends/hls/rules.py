"""What each operator of the integer stage becomes. A table: a line, and a short function, teaches a new one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from tersor.ir import integer_operators as ops
from tersor.ir.macs import multiply_accumulates

from .build import VIEWS, Builder, Refusal, Value, integer, scale_of
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
    Stream,
    Subsample,
    SumPool,
    Window,
)
from .pair_sum import PairTable, cheapest_sum
from .requantizer import Ints, Requantizer

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
    return any(user.target in _IMAGES or (user.target in VIEWS and _reads_images(user)) for user in node.users)


def _dequantize(b: Builder, node: fx.Node) -> None:
    q, _, zero_point, axis = node.args
    if any(user.op != "output" for user in node.users):
        return  # a float island reads it, which is refused by name
    value = b.value(q)
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
    stream, plane = b.image(x)
    shape = b.shape(acc)
    out = (1, *shape[2:])[-2:]
    geometry = Geometry(
        plane, _pair(filters.shape[2:], 1), _pair(stride, 1), _pair(padding, 0), _pair(dilation, 1), (out[0], out[1])
    )
    channels, outputs, count = stream.channels, len(filters), integer(groups)
    depthwise = count == channels == outputs and count > 1
    windows = _windows(b, acc, stream, geometry, integer(zero_point) - stream.low, depthwise)
    y, requantizer, node = _result(b, acc, math.prod(out), outputs)
    if depthwise:
        matrix = filters.reshape(outputs, -1)
    else:
        matrix = _ungrouped(filters, count).transpose(0, 2, 3, 1).reshape(outputs, -1)
    folded = _folded_bias(b, bias, matrix, stream.low - integer(zero_point))
    name, kind = b.name(acc, "_unit"), Depthwise if depthwise else MatrixVector
    reach = _sums(matrix, folded, stream)
    b.add(kind(name, node.name, (windows,), (y,), matrix, folded, requantizer, reach, macs=_macs(acc)))
    b.place(acc, y)


def _folded_bias(b: Builder, bias: Any, matrix: Ints, move: int) -> Ints:
    """The bias for what travels: sum((q - zp) * w) = sum((q - low) * w) + (low - zp) * sum(w)."""
    given = b.constant(bias)
    folded: Ints = (0 if given is None else given) + move * matrix.sum(axis=1)
    return folded


def _sums(matrix: Ints, bias: Ints, x: Stream) -> tuple[int, int]:
    """The range of every partial sum, whatever the stream carries: what travels is 0 or more."""
    most = x.high - x.low
    low, high = bias + most * np.minimum(matrix, 0).sum(1), bias + most * np.maximum(matrix, 0).sum(1)
    return int(low.min(initial=0)), int(high.max(initial=0))


def _ungrouped(weight: Ints, groups: int) -> Ints:
    """A grouped convolution as one with zeros between the groups, which a static schedule skips."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    full = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        full[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return full


def _windows(b: Builder, acc: fx.Node, x: Stream, geometry: Geometry, pad: int, by_channel: bool) -> Stream:
    """The stream of what lies under each kernel position; the input itself where that is the same."""
    if geometry.is_pointwise and geometry.stride == (1, 1):
        return x
    name, positions = b.name(acc, "_window"), math.prod(geometry.out)
    y = Stream(name, x.node, positions * geometry.taps, x.channels, x.low, x.high, side=True)
    if geometry.is_pointwise:
        b.add(Subsample(f"{name}s", acc.name, (x,), (y,), geometry))
    else:
        b.add(Window(f"{name}s", acc.name, (x,), (y,), geometry, pad, by_channel))
    return y


def _pair(values: Any, missing: int) -> tuple[int, int]:
    """One or two numbers as those of rows and of columns."""
    values = [int(value) for value in values]
    return (missing, values[0]) if len(values) == 1 else (values[0], values[1])


def _linear(b: Builder, acc: fx.Node) -> None:
    x, weight, bias, zero_point = acc.args
    matrix, value = b.constant(weight), b.value(x)
    assert matrix is not None
    outputs, inputs = matrix.shape
    order = value.order.reshape(-1, inputs)
    starts = np.arange(len(order))[:, None] * inputs
    if not (order - starts == order[0]).all() or not (np.sort(order[0]) == np.arange(inputs)).all():
        raise Refusal("its rows do not follow each other in the stream", "keep what a linear layer sums over last")
    columns = np.zeros_like(matrix)
    columns[:, order[0]] = matrix
    y, requantizer, node = _result(b, acc, len(order), outputs)
    folded = _folded_bias(b, bias, columns, value.stream.low - integer(zero_point))
    unit = (value.stream,), (y,), columns, folded, requantizer, _sums(columns, folded, value.stream)
    b.add(MatrixVector(b.name(acc, "_unit"), node.name, *unit, macs=_macs(acc)))
    b.place(acc, y, -1)


# -- pools -----------------------------------------------------------------------------------------------------------


def _max_pool(b: Builder, node: fx.Node) -> None:
    x, kernel, stride, padding, dilation, _ = node.args
    stream, plane = b.image(x)
    geometry = _pool_geometry(b, node, plane, kernel, stride, padding, dilation)
    windows = _windows(b, node, stream, geometry, 0, True)
    y = Stream(b.name(node), node.name, math.prod(geometry.out), stream.channels, stream.low, stream.high)
    b.add(MaxPool(b.name(node, "_unit"), node.name, (windows,), (y,), geometry.taps))
    b.place(node, y)


def _pool_geometry(b: Builder, node: fx.Node, plane: tuple[int, int], *geometry: Any) -> Geometry:
    kernel, stride, padding, dilation = geometry
    out = (1, *b.shape(node)[2:])[-2:]
    return Geometry(plane, _pair(kernel, 1), _pair(stride, 1), _pair(padding, 0), _pair(dilation, 1), (out[0], out[1]))


def _sum_pool(b: Builder, acc: fx.Node) -> None:
    x, zero_point, kernel, stride, padding, _ = acc.args
    stream, plane = b.image(x)
    geometry = _pool_geometry(b, acc, plane, kernel, stride, padding, [1] * len(kernel))  # type: ignore[arg-type]
    windows = _windows(b, acc, stream, geometry, integer(zero_point) - stream.low, True)
    y, requantizer, node = _result(b, acc, math.prod(geometry.out), stream.channels)
    if requantizer is None:
        raise Refusal("its accumulator is wanted in float", "Quantize(..., coverage=Coverage.EVERYTHING)")
    bias = geometry.taps * (stream.low - integer(zero_point))
    reach = bias, bias + geometry.taps * (stream.high - stream.low)
    unit = (windows,), (y,), geometry.taps, bias, requantizer, reach
    b.add(SumPool(b.name(acc, "_unit"), node.name, *unit))
    b.place(acc, y)


def _sum(b: Builder, acc: fx.Node) -> None:
    x, dims, _, zero_point = acc.args
    value, shape = b.value(x), b.shape(x)
    summed = sorted(integer(dim) % len(shape) for dim in dims)  # type: ignore[union-attr]  # a list, by its schema
    kept = [dim for dim in range(len(shape)) if dim not in summed]
    pixels = math.prod(shape[dim] for dim in summed)
    order = value.order.transpose(summed + kept).reshape(pixels, -1)
    channels = order.shape[1]
    if not np.array_equal(order, np.arange(order.size).reshape(order.shape)):
        raise Refusal("what it sums over does not lie in pixels", "sum over rows and columns, not over channels")
    y, requantizer, node = _result(b, acc, 1, channels)
    if requantizer is None:
        raise Refusal("its accumulator is wanted in float", "Quantize(..., coverage=Coverage.EVERYTHING)")
    bias = pixels * (value.stream.low - integer(zero_point))
    reach = bias, bias + pixels * (value.stream.high - value.stream.low)
    b.add(GlobalPool(b.name(acc, "_unit"), node.name, (value.stream,), (y,), bias, requantizer, reach))
    b.place(acc, y, None)


# -- element by element ----------------------------------------------------------------------------------------------


def _two(b: Builder, node: fx.Node) -> tuple[Stream, Stream, Ints]:
    left, right = (b.value(source) for source in node.args[:2])
    if left.order.shape != right.order.shape:
        raise Refusal("its operands are of different sizes", "expand the smaller one in the model")
    if not np.array_equal(left.order, right.order):
        raise Refusal("its operands travel in different orders", "permute both, or neither")
    return left.stream, right.stream, left.order


def _add(b: Builder, node: fx.Node) -> None:
    left, right, order = _two(b, node)
    scale_a, zero_a, scale_b, zero_b, scale, zero_point, low, high = node.args[2:]
    grid = [torch.arange(stream.low, stream.high + 1, dtype=torch.int8) for stream in (left, right)]
    values = ops.int_add(*torch.meshgrid(*grid, indexing="ij"), *node.args[2:])  # type: ignore[arg-type]
    results = values.to(torch.int64).numpy()
    target, zeros = (integer(zero_point), integer(low), integer(high)), (integer(zero_a), integer(zero_b))
    table = PairTable(left.low, right.low, results, *target, zeros)
    ratios = [float(part) / float(scale) for part in (scale_a, scale_b)]  # type: ignore[arg-type]
    y = b.stream(node, left.pixels, left.channels)
    b.add(Add(b.name(node, "_unit"), node.name, (left, right), (y,), cheapest_sum(table, *ratios)))
    b.values[node] = Value(y, order)


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
    value, given = b.value(x), b.constant(factor)
    assert given is not None
    if b.shape(acc) != b.shape(x):
        raise Refusal("a constant operand is larger than the other", "expand the other in the model")
    factors = np.zeros(value.stream.count, np.int64)
    factors[value.order.reshape(-1)] = np.broadcast_to(given, value.order.shape).reshape(-1) - integer(zero_factor)
    rows = factors.reshape(value.stream.pixels, value.stream.channels)
    if (rows != rows[0]).any():
        rows = factors[None]
    matrix = rows[0][:, None]
    y, requantizer, node = _result(b, acc, value.stream.count // len(matrix), len(matrix))
    folded = _folded_bias(b, None, matrix, value.stream.low - integer(zero_x))
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
    b.values[node] = Value(y, value.order)


def _cat(b: Builder, node: fx.Node) -> None:
    sources, dim = list(node.args[0]), integer(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    rank = len(b.shape(node))
    values = [b.value(source) for source in sources]
    axis, pixels = dim % rank, math.prod(size for i, size in enumerate(b.shape(node)) if i != dim % rank)
    for value in values:
        order = np.moveaxis(value.order, axis, -1).reshape(pixels, -1)
        if not np.array_equal(order, np.arange(order.size).reshape(order.shape)):
            raise Refusal("it joins along something else than channels", "cat(..., dim=1) of images")
    stream = values[0].stream
    for index, value in enumerate(values[1:], start=1):
        last = index == len(values) - 1
        channels = (stream.count + value.stream.count) // pixels
        ends = min(stream.low, value.stream.low), max(stream.high, value.stream.high)
        low, high = b._range(node) if last else ends
        low, high = min(low, ends[0]), max(high, ends[1])
        y = Stream(b.name(node, "" if last else "_part"), node.name, pixels, channels, low, high, side=not last)
        b.add(Concat(b.name(node, "_unit"), node.name, (stream, value.stream), (y,)))
        stream = y
    b.place(node, stream, axis)


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
