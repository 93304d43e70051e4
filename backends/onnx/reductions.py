"""Rules for operators that sum up, count or order along dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .builder import Builder, Value
from .registry import add_rule, rule

aten = torch.ops.aten
Dims = int | Sequence[int] | None


def _reduce(b: Builder, operator: str, x: str, dim: Dims, keepdim: bool) -> str:
    axes = None if dim is None or dim == [] else b.ints(*([dim] if isinstance(dim, int) else dim))
    return b.op(operator, x, axes, keepdims=int(keepdim))


def _reduction(operator: str) -> Callable[[Builder, Value, Any, bool], str]:
    def emit(b: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> str:
        return _reduce(b, operator, b.cast(x, b.result.dtype), dim, keepdim)

    return emit


def _whole(operator: str) -> Callable[[Builder, Value], str]:
    def emit(b: Builder, x: Value) -> str:
        return _reduce(b, operator, b.cast(x, b.result.dtype), None, False)

    return emit


def _quantifier(operator: str) -> Callable[[Builder, Value, Any, bool], str]:
    """ONNX Runtime reduces no booleans, so they are counted."""

    def emit(b: Builder, x: Value, dim: Any = None, keepdim: bool = False) -> str:
        truth = b.op("Cast", b.cast(x, torch.bool), to=6)  # 6 is INT32
        return b.op("Cast", _reduce(b, operator, truth, dim, keepdim), to=9)  # 9 is BOOL

    return emit


_REDUCTIONS = {
    "ReduceSum": (aten.sum.dim_IntList,),
    "ReduceProd": (aten.prod.dim_int,),
    "ReduceMax": (aten.amax.default,),
    "ReduceMin": (aten.amin.default,),
    "ReduceLogSumExp": (aten.logsumexp.default,),
}
_WHOLE = {
    "ReduceSum": aten.sum.default,
    "ReduceProd": aten.prod.default,
    "ReduceMean": aten.mean.default,
    "ReduceMax": aten.max.default,
    "ReduceMin": aten.min.default,
}

for _operator, _targets in _REDUCTIONS.items():
    for _target in _targets:
        add_rule(_target, _reduction(_operator))
for _operator, _target in _WHOLE.items():
    add_rule(_target, _whole(_operator))
for _packet, _operator in ((aten.any, "ReduceMax"), (aten.all, "ReduceMin")):
    for _overload in ("default", "dim", "dims"):
        add_rule(getattr(_packet, _overload), _quantifier(_operator))


@rule(aten.mean.dim)
def mean(b: Builder, x: Value, dim: Dims, keepdim: bool) -> str:
    """The mean over the spatial dimensions of images is a pooling, which has integer kernels.

    Of sequences it is not: RMS norm is such a mean, which ONNX Runtime fuses as ReduceMean alone.
    """
    dims = sorted(d % x.rank for d in ([dim] if isinstance(dim, int) else dim or ()))
    if x.rank > 3 and dims == list(range(2, x.rank)) and x.dtype.is_floating_point:
        pooled = b.op("GlobalAveragePool", x)
        return pooled if keepdim else b.end_with_move("Squeeze", pooled, b.ints(*dims))
    return _reduce(b, "ReduceMean", b.cast(x, b.result.dtype), dim, keepdim)


@rule(aten.var.correction)
def var(b: Builder, x: Value, dim: Dims, *, correction: float | None, keepdim: bool) -> str:
    dims = list(range(x.rank)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    centred = b.op("Sub", x, _reduce(b, "ReduceMean", x, dims, True))
    total = _reduce(b, "ReduceSum", b.op("Mul", centred, centred), dims, keepdim)
    taken = 1 if correction is None else correction
    sizes = [x.shape[d] for d in dims]
    if all(isinstance(size, int) for size in sizes):
        return b.op("Div", total, b.number(max(0, math.prod(sizes) - taken), x.dtype))
    parts = [b.shape(x, d % x.rank, d % x.rank + 1) for d in dims]
    count = b.op("ReduceProd", b.op("Concat", *parts, axis=0), keepdims=0)
    return b.op("Div", total, b.op("Sub", b.op("CastLike", count, total), b.number(taken, x.dtype)))


@rule(aten.std.correction)
def std(b: Builder, x: Value, dim: Dims, *, correction: float | None, keepdim: bool) -> str:
    return b.op("Sqrt", var(b, x, dim, correction=correction, keepdim=keepdim))


@rule(aten.var.dim)
def var_dim(b: Builder, x: Value, dim: Dims, unbiased: bool, keepdim: bool) -> str:
    return var(b, x, dim, correction=float(unbiased), keepdim=keepdim)


@rule(aten.std.dim)
def std_dim(b: Builder, x: Value, dim: Dims, unbiased: bool, keepdim: bool) -> str:
    return std(b, x, dim, correction=float(unbiased), keepdim=keepdim)


@rule(aten.var.default)
def var_whole(b: Builder, x: Value, unbiased: bool) -> str:
    return var(b, x, None, correction=float(unbiased), keepdim=False)


@rule(aten.std.default)
def std_whole(b: Builder, x: Value, unbiased: bool) -> str:
    return std(b, x, None, correction=float(unbiased), keepdim=False)


@rule(aten.var_mean.correction)
def var_mean(b: Builder, x: Value, dim: Dims, *, correction: float | None, keepdim: bool) -> tuple[str, str]:
    return var(b, x, dim, correction=correction, keepdim=keepdim), _reduce(b, "ReduceMean", x, dim, keepdim)


@rule(aten.var_mean.dim)
def var_mean_dim(b: Builder, x: Value, dim: Dims, unbiased: bool, keepdim: bool) -> tuple[str, str]:
    return var_mean(b, x, dim, correction=float(unbiased), keepdim=keepdim)


@rule(aten.cdist.default)
def cdist(b: Builder, x: Value, y: Value, order: float) -> str:
    """The norms of all differences of rows."""
    left, right = b.op("Unsqueeze", x, b.ints(-2)), b.op("Unsqueeze", y, b.ints(-3))
    difference = b.op("Sub", left, right)
    if order in _NORMS:
        return b.op(_NORMS[order], difference, b.ints(-1), keepdims=0)
    power = b.op("Pow", b.op("Abs", difference), b.number(order, x.dtype))
    return b.op("Pow", b.op("ReduceSum", power, b.ints(-1), keepdims=0), b.number(1 / order, x.dtype))


_NORMS: dict[float, str] = {1.0: "ReduceL1", 2.0: "ReduceL2"}


@rule(aten.linalg_vector_norm.default)
def vector_norm(b: Builder, x: Value, order: float, dim: Dims, keepdim: bool) -> str:
    if order == 2:
        return _reduce(b, "ReduceL2", x, dim, keepdim)
    power = b.op("Pow", b.op("Abs", x), b.number(order, x.dtype))
    return b.op("Pow", _reduce(b, "ReduceSum", power, dim, keepdim), b.number(1 / order, x.dtype))


def _extreme_place(operator: str) -> Callable[[Builder, Value, int | None, bool], str]:
    def emit(b: Builder, x: Value, dim: int | None, keepdim: bool) -> str:
        if dim is None:
            return b.op("Squeeze", b.op(operator, b.op("Reshape", x, b.ints(-1)), axis=0, keepdims=1), b.ints(0))
        return b.op(operator, x, axis=dim, keepdims=int(keepdim))

    return emit


def _extreme(operator: str) -> Callable[[Builder, Value, int, bool], tuple[str, str]]:
    def emit(b: Builder, x: Value, dim: int, keepdim: bool) -> tuple[str, str]:
        place = b.op(f"Arg{operator}", x, axis=dim, keepdims=int(keepdim))
        return _reduce(b, f"Reduce{operator}", x, dim, keepdim), place

    return emit


for _operator, _packet in (("Max", aten.max), ("Min", aten.min)):
    add_rule(_packet.dim, _extreme(_operator))
add_rule(aten.argmax.default, _extreme_place("ArgMax"))
add_rule(aten.argmin.default, _extreme_place("ArgMin"))


@rule(aten.cumsum.default)
def cumsum(b: Builder, x: Value, dim: int) -> str:
    return b.op("CumSum", b.cast(x, b.result.dtype), b.number(dim, torch.int64))


@rule(aten.topk.default)
def topk(b: Builder, x: Value, k: Any, dim: int, largest: bool, sorted: bool) -> tuple[str, ...]:
    return b.op_many("TopK", 2, x, b.sizes([k]), axis=dim, largest=int(largest), sorted=int(sorted))


@rule(aten.sort.default)
def sort(b: Builder, x: Value, dim: int, descending: bool) -> tuple[str, ...]:
    axis = dim % x.rank
    size = x.shape[axis]
    count = b.ints(size) if isinstance(size, int) else b.shape(x, axis, axis + 1)
    return b.op_many("TopK", 2, x, count, axis=axis, largest=int(descending))


@rule(aten.sort.stable)
def sort_stable(b: Builder, x: Value, *, dim: int, descending: bool) -> tuple[str, ...]:
    return sort(b, x, dim, descending)


@rule(aten.argsort.default)
def argsort(b: Builder, x: Value, dim: int, descending: bool) -> str:
    return sort(b, x, dim, descending)[1]


@rule(aten.argsort.stable)
def argsort_stable(b: Builder, x: Value, *, dim: int, descending: bool) -> str:
    return argsort(b, x, dim, descending)


@rule(aten.diff.default)
def diff(b: Builder, x: Value, n: int, dim: int, prepend: Value | None, append: Value | None) -> str:
    axis = dim % x.rank
    parts = [part for part in (prepend, x, append) if part is not None]
    result: str = x if len(parts) == 1 else b.op("Concat", *parts, axis=axis)
    for _ in range(n):
        later = b.op("Slice", result, b.ints(1), b.ints(2**63 - 1), b.ints(axis))
        earlier = b.op("Slice", result, b.ints(0), b.ints(-1), b.ints(axis))
        result = b.op("Not", b.op("Equal", later, earlier)) if x.dtype == torch.bool else b.op("Sub", later, earlier)
    return result
