"""Rules for tensors made from nothing, and for arithmetic on sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .builder import Builder, Value
from .dtypes import tensor_proto
from .registry import Refusal, add_rule, rule

aten = torch.ops.aten

# -- tensors ---------------------------------------------------------------------------------------------------------


def filled(b: Builder, shape: str, value: Any, dtype: torch.dtype) -> str:
    """A tensor of one value: a number, or a symbolic size."""
    if isinstance(value, Value):
        return b.op("Expand", b.cast(value, dtype), shape)
    return b.op("ConstantOfShape", shape, value=tensor_proto("value", torch.tensor([value], dtype=dtype)))


def _fixed(value: int) -> Callable[[Builder, Sequence[Any]], str]:
    return lambda b, size: filled(b, b.sizes(size), value, b.result.dtype)


def _fixed_new(value: int) -> Callable[[Builder, Value, Sequence[Any]], str]:
    return lambda b, x, size: filled(b, b.sizes(size), value, b.result.dtype)


def _fixed_like(value: int) -> Callable[[Builder, Value], str]:
    return lambda b, x: filled(b, _shape_of(b, x), value, b.result.dtype)


def _shape_of(b: Builder, x: Value) -> str:
    return b.ints(*x.shape) if all(isinstance(size, int) for size in x.shape) else b.shape(x)


for _value, _name in ((0, "zeros"), (1, "ones"), (0, "empty")):
    _memory = getattr(getattr(aten, _name), "memory_format" if _name == "empty" else "default")
    add_rule(_memory, _fixed(_value))
    add_rule(getattr(aten, f"new_{_name}").default, _fixed_new(_value))
    add_rule(getattr(aten, f"{_name}_like").default, _fixed_like(_value))


@rule(aten.full.default)
def full(b: Builder, size: Sequence[Any], value: Any) -> str:
    return filled(b, b.sizes(size), value, b.result.dtype)


@rule(aten.new_full.default)
def new_full(b: Builder, x: Value, size: Sequence[Any], value: Any) -> str:
    return filled(b, b.sizes(size), value, b.result.dtype)


@rule(aten.full_like.default)
def full_like(b: Builder, x: Value, value: Any) -> str:
    return filled(b, _shape_of(b, x), value, b.result.dtype)


@rule(aten.scalar_tensor.default)
def scalar_tensor(b: Builder, value: Any) -> str:
    return b.operand(value, b.result.dtype)


@rule(aten.arange.default)
def arange(b: Builder, end: Any) -> str:
    return arange_start_step(b, 0, end, 1)


@rule(aten.arange.start)
def arange_start(b: Builder, start: Any, end: Any) -> str:
    return arange_start_step(b, start, end, 1)


@rule(aten.arange.start_step)
def arange_start_step(b: Builder, start: Any, end: Any, step: Any) -> str:
    dtype = b.result.dtype
    if not any(isinstance(value, Value) for value in (start, end, step)):
        return b.constant(torch.arange(start, end, step, dtype=dtype))
    limits = [b.operand(value, torch.int64 if not dtype.is_floating_point else dtype) for value in (start, end, step)]
    result = b.op("Range", *limits)
    return result if dtype == torch.int64 or dtype.is_floating_point else b.cast(result, dtype)


# -- sizes -----------------------------------------------------------------------------------------------------------


@rule(aten.sym_size.int)
def sym_size(b: Builder, x: Value, dim: int) -> str:
    axis = dim % x.rank
    return b.op("Squeeze", b.shape(x, axis, axis + 1), b.ints(0))


@rule(aten.sym_numel.default)
def sym_numel(b: Builder, x: Value) -> str:
    return b.op("Size", x)


def _integer(name: str) -> Callable[[Builder, Any, Any], str]:
    def emit(b: Builder, x: Any, y: Any) -> str:
        _refuse_fractions(x, y)
        return b.op(name, b.operand(x, torch.int64), b.operand(y, torch.int64))

    return emit


def _refuse_fractions(*values: Any) -> None:
    if any(isinstance(v, float) or isinstance(getattr(v, "fake", None), torch.SymFloat) for v in values):
        raise Refusal("computes with a fraction of a size", "use // instead of / on sizes")


_SIZE_ARITHMETIC = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.mod: "Mod",
    operator.pow: "Pow",
    torch.sym_max: "Max",
    torch.sym_min: "Min",
}
for _function, _name in _SIZE_ARITHMETIC.items():
    add_rule(_function, _integer(_name))


@rule(operator.floordiv)
def size_floordiv(b: Builder, x: Any, y: Any) -> str:
    """ONNX rounds a quotient toward zero, Python down; without the remainder they agree."""
    _refuse_fractions(x, y)
    left, right = b.operand(x, torch.int64), b.operand(y, torch.int64)
    return b.op("Div", b.op("Sub", left, b.op("Mod", left, right)), right)


@rule(operator.neg)
def size_neg(b: Builder, x: Value) -> str:
    return b.op("Neg", x)


@rule(torch.sym_int)
def size_int(b: Builder, x: Value) -> str:
    _refuse_fractions(x)
    return x
