"""What each operator of the integer stage becomes. A line in the table, and a short function, add one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from tersor.ir import integer_norms as norms
from tersor.ir import integer_operators as ops
from tersor.ir.accumulators import accumulator_range
from tersor.ir.macs import multiply_accumulates
from tersor.ir.proofs import Requantization
from tersor.ir.shapes import KEY

from ..grouped_convolution import ungrouped
from .choice import Choice, Plane, choose
from .layout import Affine, Border
from .maxima import plan_maximum
from .numbers import EMBEDDING, plan_embedding
from .places import PLACES, plan_place
from .plan import LEAST, Planner, explicit_padding, integer, pair
from .steps import (
    Convolution,
    CutAverage,
    DequantizeOutput,
    LinearOutput,
    Lookup,
    MatMul,
    Normalize,
    Phases,
    Pool,
    Product,
    QuantizeInput,
    Requantize,
    Softmax,
    Sum,
    Walk,
)
from .views import Buffer

aten = torch.ops.aten


def _sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)


def _macs(node: fx.Node) -> int:
    return multiply_accumulates(node, _sizes)


# -- edges -----------------------------------------------------------------------------------------------------------


def _quantize(planner: Planner, node: fx.Node) -> None:
    source, scale, zero_point, low, high = node.args
    shape = planner.shape(node)
    axis = 1 if len(shape) > 2 and shape[0] == 1 and _is_image(node) else None
    index = planner.program.placeholders.index(source)  # type: ignore[arg-type]  # support.py: an input
    step = float(planner.constant(scale))  # type: ignore[arg-type]  # support.py: a constant
    grid = integer(zero_point), integer(low), integer(high)
    plain = planner.allocate(f"{node.name}_plain", planner.shape(node), None)
    planner.steps.append(QuantizeInput(node.name, (), Walk.whole(plain), index, step, *grid))
    planner.values[node] = plain.view()
    if axis is not None:
        planner.copy_into(planner.result(node, axis), plain.view(), axis)


def _is_image(node: fx.Node) -> bool:
    """Whether something that reads a value walks it by channels along axis 1."""
    targets = _BY_CHANNEL if node.meta[KEY].dim() > 3 else _WINDOWS
    return any(user.target in targets or explicit_padding(user) is not None for user in node.users)


def _dequantize(planner: Planner, node: fx.Node) -> None:
    q, scale, zero_point, _ = node.args
    assert isinstance(q, fx.Node)
    outputs = [index for index, output in enumerate(planner.program.outputs) if output is node]
    for index in outputs:
        if q.target is ops.INT_LINEAR:
            _linear_output(planner, node, q, index)
            continue
        source = planner.read(q, None)
        step = float(planner.constant(scale))  # type: ignore[arg-type]  # support.py: a constant
        planner.steps.append(
            DequantizeOutput(
                node.name,
                (source,),
                None,
                int(np.prod(planner.shape(node), dtype=np.int64)),
                index,
                step,
                integer(zero_point),
            )
        )


def _linear_output(planner: Planner, node: fx.Node, acc: fx.Node, index: int) -> None:
    x, weight, bias, zero_point = acc.args
    source, filters = planner.read(x, None), planner.constant(weight)  # type: ignore[arg-type]
    assert filters is not None
    rows = int(np.prod(planner.shape(acc)[:-1], dtype=np.int64))
    scale = np.atleast_1d(planner.constant(node.args[1])).astype(np.float32)  # type: ignore[arg-type]
    values = _bias(planner, bias, len(filters))
    planner.steps.append(
        LinearOutput(
            acc.name, (source,), None, index, filters, values, integer(zero_point), rows, scale, macs=_macs(acc)
        )
    )


def _bias(planner: Planner, bias: Any, channels: int) -> np.ndarray[Any, Any]:
    values = planner.constant(bias)
    return np.zeros(channels, np.int32) if values is None else values


# -- accumulators onto a grid ----------------------------------------------------------------------------------------


def _requantize(planner: Planner, node: fx.Node) -> None:
    acc = node.args[0]
    assert isinstance(acc, fx.Node)
    _ACCUMULATORS[acc.target](planner, acc, node)


def _grid(planner: Planner, node: fx.Node, acc: fx.Node, channels: int | None) -> Requantize:
    """What a requantize node does, with the proof that the fast form is the same."""
    multiplier, zero_point, low, high = planner.program.constant(node.args[1]), *node.args[2:]
    assert multiplier is not None
    given = multiplier.detach().reshape(-1)
    reach = accumulator_range(planner.program, acc)
    assert reach is not None
    wide = given if channels is None else given.expand(channels)
    lowest, highest = (reach.low, reach.high) if reach.low.shape == wide.shape else (reach.low.min(), reach.high.max())
    grid = integer(zero_point), integer(low), integer(high)
    case = Requantization(wide, *grid, lowest.expand(wide.shape), highest.expand(wide.shape))
    magic = bool(case.allows_magic().all())
    return Requantize(wide.numpy().astype(np.float32), case.zero_point, case.quant_min, case.quant_max, magic)


def _convolution(planner: Planner, acc: fx.Node, node: fx.Node) -> None:
    x, weight, bias, zero_point, stride, padding, dilation, groups = acc.args
    assert isinstance(x, fx.Node)
    filters = planner.constant(weight)
    assert filters is not None
    filters = filters[:, :, None, :] if filters.ndim == 3 else filters
    strides, pads, steps = pair(stride, 1), pair(padding, 0), pair(dilation, 1)
    zero, border = integer(zero_point), Border(pads[0], pads[1], pads[0], pads[1])
    if (explicit := explicit_padding(x)) is not None:
        x, border = x.args[0], explicit.around(border)
        assert isinstance(x, fx.Node)
    source = planner.read(x, 1, border, zero)
    buffer = planner.result(node, 1)
    grid, values = _grid(planner, node, acc, len(filters)), _bias(planner, bias, len(filters))
    window = _Window((filters.shape[2], filters.shape[3]), steps, strides)
    walk, taps = _windowed(planner, node, x, _moved_back(source, border, planner.block), border, window)
    depthwise = groups == len(filters) == planner.shape(x)[1] and groups != 1
    filters = filters if depthwise else ungrouped(filters, integer(groups))
    kernel = _kernel(planner, filters, walk, buffer, taps, grid)
    kernel = Choice("depthwise", "one filter a channel") if depthwise else kernel
    layout = buffer.layout
    planner.steps.append(
        Convolution(
            node.name, (walk,), Walk.whole(buffer), filters, values, zero, taps, layout.rows, layout.width, grid,
            kernel.name, kernel.reason, macs=_macs(acc),
        )
    )  # fmt: skip


def _kernel(planner: Planner, filters: Any, walk: Walk, buffer: Buffer, taps: Any, grid: Requantize) -> Choice:
    """The kernel for these weights; one pixel whose channels lie one after another has kernels of its own."""
    y, block = buffer.layout, planner.block
    together = all(
        count <= block or step == block
        for count, step in ((filters.shape[1], walk.affine.block_bytes), (len(filters), y.block_bytes))
    )
    vector = together and y.rows * y.width == 1 and not taps.any() and len(taps) == 1
    flat = y.rows == 1 or walk.affine.row_bytes == y.row_bytes == y.width * block
    return choose(planner.isa, filters, vector=vector, plane=Plane(y.rows, y.width, flat, grid.magic))


def _moved_back(walk: Walk, border: Border, block: int) -> Walk:
    """The walk from the first pixel of the first window, which lies in the border."""
    affine = walk.affine
    first = affine.first - border.top * affine.row_bytes - border.left * block
    return Walk(walk.buffer, Affine(first, affine.block_bytes, affine.row_bytes))


@dataclass(frozen=True)
class _Window:
    """A kernel's sizes, steps between its taps, and its strides, in rows and columns."""

    size: tuple[int, int]
    dilation: tuple[int, int]
    stride: tuple[int, int]

    def taps(self) -> list[tuple[int, int]]:
        """The pixel of each tap from the first pixel of a window."""
        return [(i * self.dilation[0], j * self.dilation[1]) for i in range(self.size[0]) for j in range(self.size[1])]

    def phases(self) -> list[int]:
        """The phases of a strided input that some tap reads."""
        return sorted({y % self.stride[0] * self.stride[1] + x % self.stride[1] for y, x in self.taps()})


def _windowed(
    planner: Planner, node: fx.Node, x: fx.Node, walk: Walk, border: Border, window: _Window
) -> tuple[Walk, Any]:
    """What a kernel of stride 1 walks, and each tap's byte offset; a strided input is divided into phases first."""
    if window.stride == (1, 1):
        offsets = [y * walk.affine.row_bytes + x * planner.block for y, x in window.taps()]
        return walk, np.array(offsets, np.int32)
    shape, wanted, stride = planner.shape(x), window.phases(), window.stride
    rows, width = _plane(planner, x)
    whole = rows + border.top + border.bottom, width + border.left + border.right
    plane = -(-whole[0] // stride[0]), -(-whole[1] // stride[1])
    buffer = planner.allocate(f"{node.name}_phases", (1, shape[1], len(wanted) * plane[0], plane[1]), 1)
    target, blocks = Walk.whole(buffer), -(-shape[1] // planner.block)
    planner.steps.append(Phases(node.name, (walk,), target, stride, whole, blocks, tuple(wanted)))
    offsets = []
    for y, x_ in window.taps():
        phase = wanted.index(y % stride[0] * stride[1] + x_ % stride[1])
        pixel = (phase * plane[0] + y // stride[0]) * plane[1] + x_ // stride[1]
        offsets.append(pixel * planner.block)
    return target, np.array(offsets, np.int32)


def _linear(planner: Planner, acc: fx.Node, node: fx.Node) -> None:
    x, weight, bias, zero_point = acc.args
    assert isinstance(x, fx.Node)
    filters = planner.constant(weight)
    assert filters is not None
    axis = len(planner.shape(x)) - 1
    source = planner.read(x, axis)
    buffer = planner.result(node, axis)
    grid = _grid(planner, node, acc, len(filters))
    kernel = _kernel(planner, filters[:, :, None, None], source, buffer, np.zeros(1, np.int32), grid)
    layout = buffer.layout
    planner.steps.append(
        Convolution(
            node.name, (source,), Walk.whole(buffer), filters[:, :, None, None], _bias(planner, bias, len(filters)),
            integer(zero_point), np.zeros(1, np.int32), layout.rows, layout.width, grid, kernel.name, kernel.reason,
            macs=_macs(acc),
        )
    )  # fmt: skip


def _plane(planner: Planner, x: Any) -> tuple[int, int]:
    shape = planner.shape(x)
    return (shape[2] if len(shape) == 4 else 1), shape[-1]


def _window(planner: Planner, acc: fx.Node, node: fx.Node) -> None:
    x, zero_point, kernel, stride, padding, _ = acc.args
    assert isinstance(x, fx.Node)
    window, strides, pads = pair(kernel, 1), pair(stride, 1), pair(padding, 0)
    grid, zero = _grid(planner, node, acc, None), integer(zero_point)
    if grid.multiplier.size > 1:
        source, buffer = planner.read(x, 1), planner.result(node, 1)
        plane = _plane(planner, x)
        planner.steps.append(
            CutAverage(node.name, (source,), Walk.whole(buffer), plane, window, strides, pads, zero, grid)
        )
        return
    _pool(planner, node, x, (window, strides, pads, (1, 1)), zero, "average", zero, grid)


def _pool(
    planner: Planner,
    node: fx.Node,
    x: fx.Node,
    geometry: tuple[tuple[int, int], ...],
    border_value: int,
    kind: str,
    zero_point: int,
    grid: Requantize | None,
) -> None:
    """Windows that may reach over the plane's edge, into a border that holds what changes nothing."""
    window, strides, pads, dilation = geometry
    out, (rows, width) = _plane(planner, node), _plane(planner, x)
    below, right = (
        max((count - 1) * stride + (size - 1) * step + 1 - length - pad, 0)
        for count, stride, size, step, length, pad in zip(
            out, strides, window, dilation, (rows, width), pads, strict=True
        )
    )
    border = Border(pads[0], pads[1], below, right)
    source = _moved_back(planner.read(x, 1, border, border_value), border, planner.block)
    buffer = planner.result(node, 1)
    walk, taps = _windowed(planner, node, x, source, border, _Window(window, dilation, strides))
    count = window[0] * window[1]
    planner.steps.append(
        Pool(node.name, (walk,), Walk.whole(buffer), kind, taps, out[0], out[1], count, zero_point, grid)
    )


def _reduction(planner: Planner, acc: fx.Node, node: fx.Node) -> None:
    """A sum over dimensions, as a window over all of them: they are moved last, the others are its channels."""
    x, dims, _, zero_point = acc.args
    assert isinstance(x, fx.Node)
    shape = planner.shape(x)
    reduced = sorted(int(dim) % len(shape) for dim in dims)  # type: ignore[union-attr, arg-type]
    kept = [axis for axis in range(len(shape)) if axis not in reduced]
    elements = planner.value(x)
    if len(shape) == 4 and reduced == [2, 3] and shape[0] == 1:
        source, window = planner.read(x, 1), (shape[2], shape[3])
        planes: tuple[int, ...] = (1, shape[1], 1, 1)
    else:
        count = int(np.prod([shape[axis] for axis in reduced], dtype=np.int64))
        rows = np.transpose(elements, [*kept, *reduced]).reshape(1, -1, 1, count)
        source, window = planner.read(rows, 1), (1, count)
        planes = (1, rows.shape[1], 1, 1)
    buffer = planner.allocate(node.name, planes, 1)
    planner.values[node] = buffer.view().reshape(planner.shape(node))
    grid = _grid(planner, node, acc, None)
    planner.steps.append(
        Pool(
            node.name, (source,), Walk.whole(buffer), "global", np.zeros(1, np.int32), window[0], window[1],
            window[0] * window[1], integer(zero_point), grid,
        )
    )  # fmt: skip


def _product(planner: Planner, acc: fx.Node, node: fx.Node) -> None:
    a, b, zero_a, zero_b = acc.args
    reads, buffer = _aligned(planner, node, (a, b))
    grid = _grid(planner, node, acc, None)
    zeros = integer(zero_a), integer(zero_b)
    planner.steps.append(Product(node.name, reads, Walk.whole(buffer), zeros, grid, macs=_macs(acc)))


def _matmul(planner: Planner, acc: fx.Node, node: fx.Node) -> None:
    a, b, zero_a, zero_b = acc.args
    shape = planner.shape(acc)
    left, right = planner.value(a), planner.value(b)  # type: ignore[arg-type]
    batch, (m, n), k = shape[:-2], shape[-2:], left.shape[-1]
    x = planner.read(np.broadcast_to(left, (*batch, m, k)), None)
    whole = np.ascontiguousarray(np.broadcast_to(right, (*batch, k, n)))
    flipped = np.ascontiguousarray(np.swapaxes(whole, -1, -2))
    transposed = planner.in_place(whole, None) is None and planner.in_place(flipped, None) is not None
    y = planner.read(flipped if transposed else whole, None)
    count = int(np.prod(batch, dtype=np.int64))
    panels = planner.allocate(f"{node.name}_panels", (count * -(-n // 16) * (64 + -(-k // 4) * 64),), None)
    buffer = planner.result(node, None)
    given = (count, m, k, n), transposed
    zeros, grid = (integer(zero_a), integer(zero_b)), _grid(planner, node, acc, None)
    planner.steps.append(MatMul(node.name, (y,), Walk.whole(panels), *given, True, zeros, grid))
    reads = x, Walk.whole(panels)
    planner.steps.append(
        MatMul(node.name, reads, Walk.whole(buffer), *given, zero_points=zeros, requantize=grid, macs=_macs(acc))
    )


def _normalize(planner: Planner, acc: fx.Node, node: fx.Node) -> None:
    x, weight, bias, zero_point, rank, epsilon, center = acc.args
    shape = planner.shape(acc)
    length = int(np.prod(shape[len(shape) - integer(rank) :], dtype=np.int64))
    source, buffer = planner.read(x, None), planner.result(node, None)  # type: ignore[arg-type]
    given = planner.constant(weight), planner.constant(bias)
    run = _run(shape[len(shape) - integer(rank) :], [value for value in given if value is not None])
    scale, offset = (_once_a_run(value, shape, run) for value in given)
    parameters = next((value.size for value in (scale, offset) if value is not None), length // run)
    rows = int(np.prod(shape, dtype=np.int64)) // length
    planner.steps.append(
        Normalize(
            node.name, (source,), Walk.whole(buffer), rows, length, run, parameters, scale, offset, integer(zero_point),
            integer(epsilon), bool(center), _grid(planner, node, acc, None),
        )
    )  # fmt: skip


def _run(shape: tuple[int, ...], parameters: Sequence[np.ndarray[Any, Any]]) -> int:
    """How many values that follow each other have a weight and a bias together: those of a channel in group norm."""
    run = 1
    for axis in range(1, len(shape) + 1):
        if not all(value.ndim >= axis and value.shape[-axis] == 1 for value in parameters):
            break
        run *= shape[-axis]
    return run


def _once_a_run(value: np.ndarray[Any, Any] | None, shape: tuple[int, ...], run: int) -> np.ndarray[Any, Any] | None:
    if value is None:
        return None
    return np.ascontiguousarray(np.broadcast_to(value, shape[-value.ndim :]).reshape(-1)[::run])


# -- int8 to int8 ----------------------------------------------------------------------------------------------------


def _aligned(planner: Planner, node: fx.Node, sources: tuple[Any, ...]) -> tuple[tuple[Walk, ...], Buffer]:
    """Inputs and the result of an element-wise operator, laid out alike."""
    shape = planner.shape(node)
    elements = [np.broadcast_to(planner.value(source), shape) for source in sources]
    axis = _axis_of(planner, elements[0])
    reads = tuple(planner.read(np.ascontiguousarray(part), axis) for part in elements)
    return reads, planner.result(node, axis)


def _axis_of(planner: Planner, elements: np.ndarray[Any, Any]) -> int | None:
    """The channel axis along which a value already lies; row-major where it lies along none."""
    for axis in (1, elements.ndim - 1):
        if elements.ndim > 1 and planner.in_place(elements, axis) is not None:
            return axis
    return None


def _add(planner: Planner, node: fx.Node) -> None:
    a, b, scale_a, zero_a, scale_b, zero_b, scale, zero_point, low, high = node.args
    reads, buffer = _aligned(planner, node, (a, b))
    scales = float(scale_a), float(scale_b), float(scale)  # type: ignore[arg-type]
    zeros = integer(zero_a), integer(zero_b), integer(zero_point)
    planner.steps.append(Sum(node.name, reads, Walk.whole(buffer), scales, zeros, integer(low), integer(high)))


def _lookup(planner: Planner, node: fx.Node) -> None:
    table = planner.constant(node.args[1])
    assert table is not None
    reads, buffer = _aligned(planner, node, (node.args[0],))
    planner.steps.append(Lookup(node.name, reads, Walk.whole(buffer), table))


def _max_pool(planner: Planner, node: fx.Node) -> None:
    x, kernel, stride, padding, dilation, _ = node.args
    assert isinstance(x, fx.Node)
    geometry = pair(kernel, 1), pair(stride, 1), pair(padding, 0), pair(dilation, 1)
    _pool(planner, node, x, geometry, LEAST, "max", 0, None)


def _softmax(planner: Planner, node: fx.Node) -> None:
    x, exponentials, dim, numerator, zero_point, low, high, *mask = node.args
    assert isinstance(x, fx.Node)
    shape = planner.shape(node)
    axis = integer(dim) % len(shape)
    elements = np.moveaxis(planner.value(x), axis, -1)
    source = planner.read(np.ascontiguousarray(elements), None)
    buffer = planner.allocate(node.name, elements.shape, None)
    planner.values[node] = np.moveaxis(buffer.view(), -1, axis)
    table = planner.constant(exponentials)
    assert table is not None
    rows = elements.size // shape[axis]
    grid = integer(numerator), integer(zero_point), integer(low), integer(high)
    hidden = _hidden_rows(planner.constant(mask[0]), shape, axis) if mask else None
    planner.steps.append(Softmax(node.name, (source,), Walk.whole(buffer), rows, shape[axis], table, *grid, hidden))


def _hidden_rows(mask: np.ndarray[Any, Any] | None, shape: tuple[int, ...], axis: int) -> np.ndarray[Any, Any] | None:
    """A mask as rows along `axis`, as many of them as differ: it repeats over leading dimensions of size 1."""
    if mask is None:
        return None
    sizes = (1,) * (len(shape) - mask.ndim) + mask.shape
    first = next((i for i, size in enumerate(sizes) if size != 1 or i == axis), len(shape) - 1)
    whole = np.broadcast_to(mask.reshape(sizes), (*sizes[:first], *shape[first:]))
    return np.ascontiguousarray(np.moveaxis(whole, axis, -1)).reshape(-1, shape[axis])


_ACCUMULATORS: dict[object, Callable[[Planner, fx.Node, fx.Node], None]] = {
    ops.INT_CONV: _convolution,
    ops.INT_LINEAR: _linear,
    ops.INT_MATMUL: _matmul,
    ops.INT_MUL: _product,
    ops.INT_SUM: _reduction,
    ops.INT_SUM_POOL: _window,
    norms.INT_NORMALIZE: _normalize,
}

_WINDOWS = frozenset({ops.INT_CONV, ops.INT_MAX_POOL, ops.INT_SUM_POOL})
_BY_CHANNEL = _WINDOWS | {aten.amax.default, ops.INT_SUM, ops.INT_ADD, ops.INT_LOOKUP}
"""Operators that walk images by channels."""

RULES: dict[object, Callable[[Planner, fx.Node], None]] = {
    ops.QUANTIZE: _quantize,
    ops.DEQUANTIZE: _dequantize,
    ops.REQUANTIZE: _requantize,
    ops.INT_ADD: _add,
    ops.INT_LOOKUP: _lookup,
    ops.INT_MAX_POOL: _max_pool,
    norms.INT_SOFTMAX: _softmax,
    EMBEDDING: plan_embedding,
    aten.amax.default: plan_maximum,
    **dict.fromkeys(PLACES, plan_place),
}
"""By operator. Accumulators are planned with what reads them; movements are followed, not planned."""

ACCUMULATORS = frozenset(_ACCUMULATORS)
