"""How far values of the integer stage can reach, proven from the constant weights.

`value_range` bounds int8 values, `accumulator_range` int32 accumulators, channel by channel. Whatever order a kernel
adds in, and whether it takes the zero point off before or folds it into the bias, `worst_partial_sum` bounds every sum
on the way: below 2**31 nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from . import integer_norms as norms
from . import integer_operators as ops
from .movement import SELECTIONS
from .shapes import KEY

if TYPE_CHECKING:
    from .program import Program

INT32_LIMIT = 1 << 31
_INT8 = (-128, 127)
_QUANT_RANGE: dict[object, int] = {
    ops.QUANTIZE: 3,
    ops.REQUANTIZE: 3,
    ops.INT_ADD: 8,
    norms.INT_SOFTMAX: 5,
}
"""Where operators that give int8 have quant_min; quant_max follows."""


@dataclass(frozen=True)
class Range:
    """The least and greatest value, per output channel or for all: int64[channels] or int64[]."""

    low: Tensor
    high: Tensor
    worst_partial_sum: int

    @property
    def magnitude(self) -> Tensor:
        """The greatest absolute value."""
        return torch.maximum(self.low.abs(), self.high.abs())


def value_range(program: Program, node: object) -> tuple[int, int]:
    """The least and greatest int8 value that a node can have, seen through operators that move values."""
    while isinstance(node, fx.Node):
        place = _QUANT_RANGE.get(node.target)
        if place is not None:
            low, high = node.args[place : place + 2]
            assert isinstance(low, int)
            assert isinstance(high, int)
            return low, high
        constant = _constant(program, node.args[1]) if node.target is ops.INT_LOOKUP else _constant(program, node)
        if constant is not None and constant.numel():
            return int(constant.min()), int(constant.max())
        if node.target not in _MOVES or not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    return _INT8


def accumulator_range(program: Program, node: fx.Node) -> Range | None:
    """What an operator that gives int32 can reach; None for any other operator.

    Raises ValueError where a size that it sums over is dynamic.
    """
    rule = _RULES.get(node.target)
    return None if rule is None else rule(program, node)


def is_accumulator(node: fx.Node) -> bool:
    """Whether the node's operator gives int32 accumulators."""
    return node.target in _RULES


def _constant(program: Program, node: object) -> Tensor | None:
    return program.constant(node)


def _centered(program: Program, node: object, zero_point: Any) -> tuple[int, int]:
    """The range of q - zero_point, 0 within it: a kernel pads with the zero point."""
    low, high = value_range(program, node)
    return min(low - int(zero_point), 0), max(high - int(zero_point), 0)


def _weighted(program: Program, node: fx.Node) -> Range:
    x, weight, bias, zero_point = node.args[:4]
    low, high = _centered(program, x, zero_point)
    constant = _constant(program, weight)
    if constant is None:
        raise ValueError("its weight is computed")
    filters = constant.to(torch.int64).flatten(1)
    positive, negative = filters.clamp(min=0).sum(1), filters.clamp(max=0).sum(1)
    added = _constant(program, bias)
    offset = torch.zeros_like(positive) if added is None else added.to(torch.int64)
    most = 256 * (positive - negative) + offset.abs()
    return Range(
        positive * low + negative * high + offset,
        positive * high + negative * low + offset,
        int(most.max()) if most.numel() else 0,
    )


def _summed(program: Program, node: fx.Node, place: int, count: int) -> Range:
    low, high = _centered(program, node.args[0], node.args[place])
    return Range(torch.tensor(count * low), torch.tensor(count * high), 256 * count)


def _products(program: Program, node: fx.Node, count: int) -> Range:
    left, right = (_centered(program, node.args[i], node.args[2 + i]) for i in (0, 1))
    products = [a * b * count for a in left for b in right]
    return Range(torch.tensor(min(products)), torch.tensor(max(products)), 65536 * count)


def _sizes(node: object, dims: Any) -> int:
    assert isinstance(node, fx.Node)
    shape = node.meta[KEY].shape
    sizes = [shape[dim] for dim in dims]
    if not all(type(size) is int for size in sizes):
        raise ValueError("it sums over a dimension of dynamic size, so its accumulator has no bound")
    return math.prod(sizes)


def _normalized(program: Program, node: fx.Node) -> Range:
    x, weight, bias, _, rank = node.args[:5]
    assert isinstance(rank, int)
    count = _sizes(x, range(-rank, 0))
    most = math.isqrt(count - 1) + 1 if count > 1 else 1
    reach = torch.tensor((most << norms.NORMALIZED_BITS) + (most << (norms.NORMALIZED_BITS - 7)) + 1)
    scale, offset = _constant(program, weight), _constant(program, bias)
    scaled = reach if scale is None else reach * scale.to(torch.int64).abs().flatten()
    added = torch.tensor(0) if offset is None else offset.to(torch.int64).flatten()
    low, high = added - scaled, added + scaled
    return Range(low, high, int(torch.maximum(low.abs(), high.abs()).max()))


_RULES: dict[object, Callable[[Program, fx.Node], Range]] = {
    ops.INT_CONV: _weighted,
    ops.INT_LINEAR: _weighted,
    ops.INT_MATMUL: lambda program, node: _products(program, node, _sizes(node.args[0], [-1])),
    ops.INT_MUL: lambda program, node: _products(program, node, 1),
    ops.INT_SUM: lambda program, node: _summed(program, node, 3, _sizes(node.args[0], node.args[1])),
    ops.INT_SUM_POOL: lambda program, node: _summed(program, node, 1, math.prod(node.args[2])),  # type: ignore[arg-type]
    norms.INT_NORMALIZE: _normalized,
}

aten = torch.ops.aten
_MOVES = frozenset({*SELECTIONS, ops.INT_MAX_POOL, ops.INT_RESIZE_NEAREST})
"""Operators whose values are all among those of their first input."""
