"""Integer forms of operators that reduce: means, average pools, softmax and normalization."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.integer_norms import (
    INT_NORMALIZE,
    INT_SOFTMAX,
    LARGEST_EPSILON,
    LONGEST_ROW,
    NORMALIZED_BITS,
    exponential_table,
    normalization_epsilon,
    softmax_numerator,
)
from tersor.ir.integer_operators import INT_SUM, INT_SUM_POOL
from tersor.ir.shapes import KEY

from ..arguments import argument, spatial
from ..quantization.integer_grid import IntegerGrid
from ..quantization.roles import SOFTMAXES, Role, role_of
from .lowering import Lowering

aten = torch.ops.aten
GridRule = Callable[[Lowering, fx.Node, IntegerGrid], fx.Node | None]

_WEIGHT_LIMIT = 2047
_BIAS_LIMIT = 1 << 29
_LEAST_SCALE = 2.0**-16


def _source(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    source = lowering.integer(node.args[0])
    return source if source is not None and source.args[3] is None else None


def _reduced(
    lowering: Lowering, node: fx.Node, grid: IntegerGrid, dims: list[int], keepdim: bool, mean: bool = True
) -> fx.Node | None:
    source = _source(lowering, node)
    if source is None:
        return None
    sizes = [source.meta[KEY].shape[dim] for dim in dims]
    if not all(type(size) is int for size in sizes):
        return None
    scale = lowering.scale(source).reshape(())
    total = lowering.accumulate(
        INT_SUM, source.args[0], dims, keepdim, source.args[2], scale=scale, axis=None, like=node
    )
    count = torch.tensor(float(math.prod(sizes)) if mean else 1.0)
    return None if total is None else _divided(lowering, node, total, count, grid)


def _divided(lowering: Lowering, node: fx.Node, total: fx.Node, count: Tensor, grid: IntegerGrid) -> fx.Node:
    """A sum onto a grid: m = float32(scale / float32(output scale * count))."""
    multiplier = lowering.scale(total).reshape(()) / (grid.step(lowering.program) * count)
    acc = total.args[0]
    assert isinstance(acc, fx.Node)
    return lowering.requantize(acc, multiplier.float(), grid, node)


def _rank(value: Any) -> int:
    return int(value.meta[KEY].dim())


def _over_dims(mean: bool) -> GridRule:
    def rule(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
        dims, rank = argument(node, "dim"), _rank(node.args[0])
        chosen = list(range(rank)) if not dims else [dim % rank for dim in dims]
        return _reduced(lowering, node, grid, chosen, bool(argument(node, "keepdim")), mean)

    return rule


def _adaptive_average(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
    size, rank = node.args[1], node.args[0].meta[KEY].dim()  # type: ignore[union-attr]
    if any(length != 1 for length in ([size] if isinstance(size, int) else size)):  # type: ignore[union-attr]
        return None
    spatial = 1 if node.target is aten.adaptive_avg_pool1d.default else 2
    return _reduced(lowering, node, grid, list(range(rank - spatial, rank)), True)


_AVERAGE_POOLS: dict[object, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2}


def _average_pool(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
    source, rank = _source(lowering, node), _AVERAGE_POOLS[node.target]
    if source is None or source.meta[KEY].dim() != rank + 2:
        return None
    kernel, stride, padding = (spatial(node, name, rank) for name in ("kernel_size", "stride", "padding"))
    window = kernel, stride or kernel, padding, bool(argument(node, "ceil_mode"))
    count = _window_sizes(node, source, *window)
    if count is None:
        return None
    scale = lowering.scale(source).reshape(())
    total = lowering.accumulate(
        INT_SUM_POOL, source.args[0], source.args[2], *window, scale=scale, axis=None, like=node
    )
    return None if total is None else _divided(lowering, node, total, count, grid)


def _window_sizes(
    node: fx.Node, source: fx.Node, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool
) -> Tensor | None:
    """What each window's sum is divided by, float32[] or one a position; None where sizes are dynamic and it varies.

    Windows that reach beyond the input, or beyond the padding where that counts, are divided by less.
    """
    divisor, counts_padding = node.args[6] if len(node.args) > 6 else None, argument(node, "count_include_pad")
    if divisor or not (ceil_mode or any(padding)) or (counts_padding and not ceil_mode):
        return torch.tensor(float(divisor or math.prod(kernel)))  # type: ignore[arg-type]  # a number, by its schema
    sizes = source.meta[KEY].shape[2:]
    if not all(type(size) is int for size in sizes):
        return None
    ones = torch.ones(1, 1, *sizes, dtype=torch.float64)
    mean: Tensor = node.target(ones, kernel, stride, padding, ceil_mode, counts_padding)  # type: ignore[operator]
    sums = torch.ops.tersor.int_sum_pool(ones.to(torch.int8), 0, kernel, stride, padding, ceil_mode)
    counts: Tensor = (sums / mean).round().to(torch.float32)
    return counts[0, 0]


def _softmax(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
    """Positions that are hidden by minus infinity are no values on a grid: the operator leaves them out."""
    scores: Any = node.args[0]
    hidden: list[Any] = []
    scale = float(grid.step(lowering.program))
    if isinstance(scores, fx.Node) and role_of(lowering.program, scores) is Role.HIDE:
        scores, hidden = scores.args[0], [scores.args[1]]
    source = lowering.integer(scores)
    if source is None or source.args[3] is not None or scale < _LEAST_SCALE:
        return None
    exponentials = exponential_table(float(lowering.scale(source)))
    given = lowering.constant(f"{node.name}.exponentials", exponentials), argument(node, "dim")
    output = softmax_numerator(scale), grid.zero_point, grid.quant_min, grid.quant_max
    return lowering.call(INT_SOFTMAX, source.args[0], *given, *output, *hidden, like=node)


def _normalization(center: bool) -> GridRule:
    """Over the last dimensions, with a weight for each value of a row."""

    def rule(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
        source, shape = _source(lowering, node), argument(node, "normalized_shape")
        if source is None:
            return None
        eps = argument(node, "eps")
        eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
        given = argument(node, "weight"), argument(node, "bias") if center else None
        return _normalized(lowering, node, grid, source, Rows(tuple(shape), tuple(shape), eps, center), given)

    return rule


def _by_groups(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
    """Group norm over rows of a group's channels and all their pixels, with a weight for each channel."""
    source = _source(lowering, node)
    if source is None:
        return None
    _, channels, *plane = source.meta[KEY].shape
    groups = int(argument(node, "num_groups")) if node.target is aten.group_norm.default else channels
    if not all(type(size) is int for size in (channels, *plane)):
        return None
    grouped = [-1, groups, channels // groups, math.prod(plane)]
    q = lowering.call(aten.reshape.default, source.args[0], grouped, like=node)
    rows = Rows((grouped[2], grouped[3]), (groups, grouped[2], 1), float(argument(node, "eps")), True)
    given = argument(node, "weight"), argument(node, "bias")
    result = _normalized(lowering, node, grid, lowering.same_grid(q, source, node), rows, given)
    return result and lowering.call(aten.reshape.default, result, [-1, channels, *plane], like=node)


@dataclass(frozen=True)
class Rows:
    """What is normalized together: the last dimensions, the shape that weight and bias have over them, and how."""

    shape: tuple[int, ...]
    parameters: tuple[int, ...]
    eps: float
    center: bool


def _normalized(
    lowering: Lowering, node: fx.Node, grid: IntegerGrid, source: fx.Node, rows: Rows, given: tuple[object, object]
) -> fx.Node | None:
    """`source` on `grid`, normalized; None where a row is too long, or weight or bias are computed."""
    if not all(type(size) is int for size in rows.shape) or math.prod(rows.shape) > LONGEST_ROW:
        return None
    epsilon = normalization_epsilon(rows.eps, math.prod(rows.shape), float(lowering.scale(source)))
    affine = _affine(lowering, rows, given)
    if epsilon >= LARGEST_EPSILON or affine is None:
        return None
    weight, bias, scale = affine
    stored = [
        None if value is None else lowering.parameter(f"{node.name}.{name}_int32", value.reshape(rows.parameters))
        for name, value in (("weight", weight), ("bias", bias))
    ]
    rest = source.args[2], len(rows.shape), epsilon, rows.center
    acc = lowering.accumulate(
        INT_NORMALIZE, source.args[0], *stored, *rest, scale=torch.tensor(scale), axis=None, like=node
    )
    if acc is None:
        return None
    assert isinstance(acc.args[0], fx.Node)
    multiplier = lowering.scale(acc) / grid.step(lowering.program)
    return lowering.requantize(acc.args[0], multiplier.float(), grid, node)


def _affine(
    lowering: Lowering, rows: Rows, given: tuple[object, object]
) -> tuple[Tensor | None, Tensor | None, float] | None:
    """Weight and bias as int32, and the scale of the accumulator; None where they are computed."""
    tensors = [lowering.program.constant(value) for value in given]
    if any(value is not None and tensor is None for value, tensor in zip(given, tensors, strict=True)):
        return None
    weight, bias = (None if tensor is None else tensor.detach().double() for tensor in tensors)
    unit = 2.0**-NORMALIZED_BITS
    if weight is None and bias is None:
        return None, None, unit
    weight = torch.ones(rows.parameters, dtype=torch.float64) if weight is None else weight
    scale = float(weight.abs().max()) / _largest_weight(math.prod(rows.shape)) * unit
    if bias is not None:
        scale = max(scale, float(bias.abs().max()) / _BIAS_LIMIT)
    scale = float(torch.tensor(scale or 1.0, dtype=torch.float32))
    stored = torch.round(weight * (unit / scale)).to(torch.int32)
    return stored, None if bias is None else torch.round(bias / scale).to(torch.int32), scale


def _largest_weight(length: int) -> int:
    """The greatest normalized value of a row is the root of its length, and their product stays below 2**30.1."""
    greatest = math.isqrt(max(length - 1, 0)) + 1
    return min(_WEIGHT_LIMIT, _WEIGHT_LIMIT * 128 // greatest)


REDUCTIONS: dict[object, GridRule] = {
    aten.mean.dim: _over_dims(mean=True),
    aten.sum.dim_IntList: _over_dims(mean=False),
    aten.adaptive_avg_pool1d.default: _adaptive_average,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    **dict.fromkeys(_AVERAGE_POOLS, _average_pool),
    **dict.fromkeys(SOFTMAXES, _softmax),
    aten.layer_norm.default: _normalization(center=True),
    aten.rms_norm.default: _normalization(center=False),
    aten.group_norm.default: _by_groups,
    aten.instance_norm.default: _by_groups,
}
