"""Rules for reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..call import Call
from ..registry import add_rule
from ..values import Value

aten = torch.ops.aten

Reduce = Callable[[Call, Value, list[int], bool], Value]


def _direct(target: Any) -> Reduce:
    return lambda op, x, axes, keep: op.call(target, x, axes, keep)


def _sum(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
    """torch sums small integers in int64."""
    return op.cast(op.call(aten.sum.dim_IntList, x, axes, keep), op.dtype(x))


def _mean(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
    if op.dtype(x).is_floating_point:
        return op.call(aten.mean.dim, x, axes, keep)
    return op.cast(op.call(aten.mean.dim, op.cast(x, torch.float64), axes, keep), op.dtype(x))


def _extreme(target: Any) -> Reduce:
    def reduce(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
        """Over no elements at all: the identity of the operation, which torch does not give."""
        if 0 in [op.size(x, axis) for axis in axes]:
            sizes = [1 if axis in axes else size for axis, size in enumerate(op.shape(x)) if keep or axis not in axes]
            return op.call(aten.full.default, sizes, _neutral(target, op.dtype(x)), dtype=op.dtype(x))
        return op.call(target, x, axes, keep)

    return reduce


def _neutral(target: Any, dtype: torch.dtype) -> float | int | bool:
    low = target is aten.amax.default
    if dtype is torch.bool:
        return not low
    if dtype.is_floating_point:
        return float("-inf") if low else float("inf")
    return torch.iinfo(dtype).min if low else torch.iinfo(dtype).max


def _prod(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
    """torch multiplies along one axis at a time."""
    dtype = op.dtype(x)
    if len(axes) == op.rank(x) and not keep:
        return op.cast(op.call(aten.prod.default, x), dtype)
    for axis in sorted(axes, reverse=True):
        x = op.call(aten.prod.dim_int, x, axis, keep)
    return op.cast(x, dtype)


def _l1(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
    return _sum(op, op.call(aten.abs.default, x), axes, keep)


def _sum_square(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
    return _sum(op, op.call(aten.mul.Tensor, x, x), axes, keep)


def _l2(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
    return op.cast(op.call(aten.sqrt.default, _sum_square(op, x, axes, keep)), op.dtype(x))


def _log_sum(op: Call, x: Value, axes: list[int], keep: bool) -> Value:
    return op.cast(op.call(aten.log.default, _sum(op, x, axes, keep)), op.dtype(x))


_REDUCTIONS: dict[str, tuple[Reduce, int]] = {
    "ReduceL1": (_l1, 18),
    "ReduceL2": (_l2, 18),
    "ReduceLogSum": (_log_sum, 18),
    "ReduceLogSumExp": (_direct(aten.logsumexp.default), 18),
    "ReduceMax": (_extreme(aten.amax.default), 18),
    "ReduceMean": (_mean, 18),
    "ReduceMin": (_extreme(aten.amin.default), 18),
    "ReduceProd": (_prod, 18),
    "ReduceSum": (_sum, 13),
    "ReduceSumSquare": (_sum_square, 18),
}
"""Operator -> how to reduce, and the opset since which the axes are an input."""


def _reduction(reduce: Reduce, axes_are_input: bool) -> Callable[[Call], Value]:
    def rule(op: Call) -> Value:
        x = op.input(0)
        given = (op.ints(1) if op.has(1) else []) if axes_are_input else op.attr_ints("axes", [])
        if not given and op.attr_int("noop_with_empty_axes", 0):
            return _of_each(op, reduce, x)
        rank = op.rank(x)
        axes = [op.axis(axis, rank) for axis in given] or list(range(rank))
        return reduce(op, x, axes, bool(op.attr_int("keepdims", 1)))

    return rule


def _of_each(op: Call, reduce: Reduce, x: Value) -> Value:
    """Each element reduced alone, as if along an axis of size 1."""
    return reduce(op, op.call(aten.unsqueeze.default, x, -1), [op.rank(x)], False)


for _name, (_reduce, _since) in _REDUCTIONS.items():
    add_rule(_name, _reduction(_reduce, False), until=_since - 1)
    add_rule(_name, _reduction(_reduce, True), since=_since)
