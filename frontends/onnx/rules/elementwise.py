"""Rules for operators that work element by element."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..call import Call
from ..registry import Function, add_rule, rule
from ..values import Quantized, Value

aten = torch.ops.aten

_UNARY: dict[str, Any] = {
    "Abs": aten.abs.default,
    "Acos": aten.acos.default,
    "Acosh": aten.acosh.default,
    "Asin": aten.asin.default,
    "Asinh": aten.asinh.default,
    "Atan": aten.atan.default,
    "Atanh": aten.atanh.default,
    "BitwiseNot": aten.bitwise_not.default,
    "Ceil": aten.ceil.default,
    "Cos": aten.cos.default,
    "Cosh": aten.cosh.default,
    "Erf": aten.erf.default,
    "Exp": aten.exp.default,
    "Floor": aten.floor.default,
    "IsNaN": aten.isnan.default,
    "Log": aten.log.default,
    "Mish": aten.mish.default,
    "Neg": aten.neg.default,
    "Not": aten.logical_not.default,
    "Reciprocal": aten.reciprocal.default,
    "Relu": aten.relu.default,
    "Round": aten.round.default,
    "Sigmoid": aten.sigmoid.default,
    "Sign": aten.sign.default,
    "Sin": aten.sin.default,
    "Sinh": aten.sinh.default,
    "Softplus": aten.softplus.default,
    "Sqrt": aten.sqrt.default,
    "Tan": aten.tan.default,
    "Tanh": aten.tanh.default,
}

_COMPARISONS: dict[str, tuple[Any, Any]] = {
    "Equal": (aten.eq.Tensor, aten.eq.Scalar),
    "Greater": (aten.gt.Tensor, aten.gt.Scalar),
    "GreaterOrEqual": (aten.ge.Tensor, aten.ge.Scalar),
    "Less": (aten.lt.Tensor, aten.lt.Scalar),
    "LessOrEqual": (aten.le.Tensor, aten.le.Scalar),
}

_LOGICAL: dict[str, Any] = {
    "And": aten.logical_and.default,
    "Or": aten.logical_or.default,
    "Xor": aten.logical_xor.default,
}

_BITWISE: dict[str, tuple[Any, Any]] = {
    "BitwiseAnd": (aten.bitwise_and.Tensor, aten.bitwise_and.Scalar),
    "BitwiseOr": (aten.bitwise_or.Tensor, aten.bitwise_or.Scalar),
    "BitwiseXor": (aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar),
}

_TESTS = frozenset({aten.isnan.default, aten.logical_not.default})

_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""Types that torch stores and does not compute with -> where it computes; casting back wraps as they would."""


_SIGN = -(1 << 63)

_FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz})
_E4M3_ROUNDS_UP = 464.0
"""Half a step above the largest float8_e4m3fn, 448: what is larger rounds to no number that it has."""


def _unary(target: Any) -> Function:
    return lambda op: op.cast(op.call(target, widened(op, op.input(0))), _result(target, op))


def _result(target: Any, op: Call) -> torch.dtype:
    return torch.bool if target in _TESTS else op.dtype(op.input(0))


def _logical(target: Any) -> Function:
    return lambda op: op.call(target, op.input(0), op.input(1))


def _bitwise(tensors: Any, scalar: Any) -> Function:
    def compute(op: Call) -> Value:
        constant = number(op, op.input(0), op.input(1))
        return arithmetic(op, tensors if constant is None else scalar)

    return compute


for _name, _target in _UNARY.items():
    add_rule(_name, _unary(_target))
for _name, _target in _LOGICAL.items():
    add_rule(_name, _logical(_target))
for _name, (_tensors, _scalar) in _BITWISE.items():
    add_rule(_name, _bitwise(_tensors, _scalar))


def number(op: Call, left: Value, right: Value) -> int | float | bool | None:
    """The constant on the right as a number, where it can stand there instead of a tensor."""
    return op.scalar(right) if isinstance(left, fx.Node) else None


def _compare(tensors: Any, scalar: Any) -> Function:
    def compare(op: Call) -> Value:
        left, right = ordered(op, op.input(0)), ordered(op, op.input(1))
        constant = number(op, left, right)
        return op.call(tensors, left, right) if constant is None else op.call(scalar, left, constant)

    return compare


for _name, (_tensors, _scalar) in _COMPARISONS.items():
    add_rule(_name, _compare(_tensors, _scalar))


def widened(op: Call, value: Value) -> Value:
    """The value in a type that torch computes with."""
    return op.cast(value, _WIDER.get(op.dtype(value), op.dtype(value)))


def ordered(op: Call, value: Value) -> Value:
    """`widened`, with uint64 in an order that int64 keeps: its upper half is negative there, so the sign is flipped."""
    wide = widened(op, value)
    return op.call(aten.bitwise_xor.Scalar, wide, _SIGN) if op.dtype(value) is torch.uint64 else wide


def from_order(op: Call, value: Value, dtype: torch.dtype) -> Value:
    """What was computed with ordered values, in their own type."""
    return op.cast(op.call(aten.bitwise_xor.Scalar, value, _SIGN) if dtype is torch.uint64 else value, dtype)


def arithmetic(op: Call, target: Any, **options: Any) -> Value:
    """A binary operator on two inputs of one type; a constant on the right as a number."""
    dtype = op.dtype(op.input(0))
    left, right = widened(op, op.input(0)), widened(op, op.input(1))
    constant = number(op, left, right)
    return op.cast(op.call(target, left, right if constant is None else constant, **options), dtype)


def commutative(op: Call, target: Any) -> Value:
    """The same where the operands may change places."""
    left, right = op.input(0), op.input(1)
    if number(op, right, left) is not None and op.dtype(right) not in _WIDER:
        return op.call(target, right, op.scalar(left))
    return arithmetic(op, target)


@rule("Sub")
def sub(op: Call) -> Value:
    left, right = op.input(0), op.input(1)
    constant = number(op, right, left)
    if constant is not None and op.dtype(right).is_floating_point:
        return op.call(aten.rsub.Scalar, right, constant)
    return arithmetic(op, aten.sub.Tensor)


@rule("Div")
def div(op: Call) -> Value:
    if op.dtype(op.input(0)).is_floating_point:
        return arithmetic(op, aten.div.Tensor)
    return arithmetic(op, aten.div.Tensor_mode, rounding_mode="trunc")


@rule("Pow")
def power(op: Call) -> Value:
    """The result has the type of the base."""
    base, exponent = op.input(0), op.input(1)
    constant = number(op, base, exponent)
    if constant is not None:
        return op.cast(op.call(aten.pow.Tensor_Scalar, base, constant), op.dtype(base))
    return op.cast(op.call(aten.pow.Tensor_Tensor, base, exponent), op.dtype(base))


@rule("Gelu")
def gelu(op: Call) -> Value:
    return op.call(aten.gelu.default, op.input(0), approximate=op.attr_str("approximate", "none"))


@rule("Clip", until=10)
def clip_to_attributes(op: Call) -> Value:
    low = op.attr_float("min") if op.has_attr("min") else None
    high = op.attr_float("max") if op.has_attr("max") else None
    return _clamp(op, low, high)


@rule("Clip", since=11)
def clip(op: Call) -> Value:
    """Of integers on their way to a DequantizeLinear: a grid with fewer of them."""
    x, bounds = op.input(0), [op.optional(1), op.optional(2)]
    numbers = [None if bound is None else op.scalar(bound) for bound in bounds]
    if isinstance(x, Quantized) and None not in numbers:
        low, high = x.bounds or numbers
        return replace(x, bounds=(max(int(numbers[0]), int(low)), min(int(numbers[1]), int(high))))  # type: ignore[arg-type]
    if all((bound is None) == (number is None) for bound, number in zip(bounds, numbers, strict=True)):
        return _clamp(op, *numbers)
    return op.call(aten.clamp.Tensor, x, *bounds)


def _clamp(op: Call, low: float | None, high: float | None) -> Value:
    """ReLU6 by the operator that PyTorch has for it."""
    x = op.input(0)
    if low is None and high is None:
        return x
    relu6 = (low, high) == (0, 6) and op.dtype(x).is_floating_point
    return op.call(aten.hardtanh.default if relu6 else aten.clamp.default, x, low, high)


_SOFTMAX = {"Softmax": aten.softmax.int, "LogSoftmax": aten.log_softmax.int}


def _softmax(target: Any) -> Function:
    return lambda op: op.call(target, op.input(0), op.attr_int("axis", -1))


def _softmax_of_matrix(target: Any) -> Function:
    def rule(op: Call) -> Value:
        """Over all axes from `axis` on, as one."""
        x = op.input(0)
        axis = op.axis(op.attr_int("axis", 1), op.rank(x))
        if axis == op.rank(x) - 1:
            return op.call(target, x, -1)
        flat = op.call(target, op.call(aten.flatten.using_ints, x, axis), -1)
        return op.call(aten.reshape.default, flat, op.shape(x))

    return rule


for _name, _target in _SOFTMAX.items():
    add_rule(_name, _softmax(_target), since=13)
    add_rule(_name, _softmax_of_matrix(_target), until=12)


@rule("Cast")
def cast(op: Call) -> Value:
    return _cast(op, op.attr_dtype("to"))


@rule("CastLike", since=15)
def cast_like(op: Call) -> Value:
    return _cast(op, op.dtype(op.input(1)))


def _cast(op: Call, dtype: torch.dtype) -> Value:
    """To float8 what is too large becomes the largest, or without saturation infinite or not a number."""
    x = op.input(0)
    if dtype in _FLOAT8 and dtype is not op.dtype(x):
        x, largest = op.cast(x, torch.float32), torch.finfo(dtype).max
        if op.attr_int("saturate", 1):
            x = op.call(aten.clamp.default, x, -largest, largest)
        elif dtype is torch.float8_e4m3fn:
            outside = op.call(aten.gt.Scalar, op.call(aten.abs.default, x), _E4M3_ROUNDS_UP)
            x = op.call(aten.masked_fill.Scalar, x, outside, float("nan"))
    return op.cast(x, dtype)


@rule("Where")
def where(op: Call) -> Value:
    return op.call(aten.where.self, op.input(0), op.input(1), op.input(2))


@rule("Identity")
def identity(op: Call) -> Value:
    return op.input(0)


@rule("Dropout")
def dropout(op: Call) -> Value | list[Value]:
    """At inference it does nothing; its mask keeps everything."""
    x = op.input(0)
    if op.opset >= 12 and op.has(2) and bool(op.known(2).item()) and not (op.has(1) and op.known(1).item() == 0):
        op.refuse("dropout that trains is random", expected="training_mode false", hint="export the model in eval mode")
    if not op.wants(1):
        return x
    mask_type = torch.bool if op.opset >= 10 else op.dtype(x)
    return [x, op.call(aten.full.default, op.shape(x), True if mask_type is torch.bool else 1, dtype=mask_type)]
