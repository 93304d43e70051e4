"""Rules for operators that compute each value from the values at its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .builder import Builder, Value
from .registry import Refusal, add_rule, rule

aten = torch.ops.aten

_UNARY = {
    aten.abs: "Abs",
    aten.acos: "Acos",
    aten.acosh: "Acosh",
    aten.asin: "Asin",
    aten.asinh: "Asinh",
    aten.atan: "Atan",
    aten.atanh: "Atanh",
    aten.ceil: "Ceil",
    aten.cos: "Cos",
    aten.cosh: "Cosh",
    aten.erf: "Erf",
    aten.exp: "Exp",
    aten.floor: "Floor",
    aten.log: "Log",
    aten.mish: "Mish",
    aten.neg: "Neg",
    aten.reciprocal: "Reciprocal",
    aten.relu: "Relu",
    aten.round: "Round",
    aten.sigmoid: "Sigmoid",
    aten.sign: "Sign",
    aten.sin: "Sin",
    aten.sinh: "Sinh",
    aten.sqrt: "Sqrt",
    aten.tan: "Tan",
    aten.tanh: "Tanh",
    aten.hardswish: "HardSwish",
}
"""ATen operators of one tensor that are one ONNX operator on values of the result's dtype."""

_ROUNDING = frozenset({aten.ceil, aten.floor, aten.round})

_ARITHMETIC = {
    aten.mul.Tensor: "Mul",
    aten.mul.Scalar: "Mul",
    aten.div.Tensor: "Div",
    aten.div.Scalar: "Div",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.max.other: "Max",
    aten.min.other: "Min",
    aten.pow.Tensor_Tensor: "Pow",
    aten.pow.Tensor_Scalar: "Pow",
    aten.pow.Scalar: "Pow",
}
"""Operators of two values that ATen converts to the result's dtype."""

_COMPARISONS = {
    "eq": "Equal",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
}

_IDENTITIES = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)


def _unary(packet: Any, operator: str) -> Callable[[Builder, Value], str]:
    def emit(b: Builder, x: Value) -> str:
        if packet in _ROUNDING and not x.dtype.is_floating_point:
            return x
        return b.op(operator, b.cast(x, b.result.dtype))

    return emit


def _arithmetic(operator: str) -> Callable[[Builder, Any, Any], str]:
    def emit(b: Builder, x: Any, y: Any) -> str:
        dtype = b.result.dtype
        if dtype == torch.bool:
            return b.op("And", x, y) if operator == "Mul" else _not_for_bool(operator)
        return b.op(operator, b.operand(x, dtype), b.operand(y, dtype))

    return emit


def _not_for_bool(operator: str) -> str:
    raise Refusal(f"{operator} of booleans has no ONNX operator", "convert to an integer type first")


def _comparison(operator: str) -> Callable[[Builder, Any, Any], str]:
    def emit(b: Builder, x: Any, y: Any) -> str:
        dtype, operands = b.promoted(x, y)
        if dtype == torch.bool and operator != "Equal":
            operands = [b.op("Cast", value, to=6) for value in operands]  # ONNX orders numbers only; 6 is INT32
        return b.op(operator, *operands)

    return emit


def _register() -> None:
    for packet, operator in _UNARY.items():
        add_rule(packet.default, _unary(packet, operator))
    for target, operator in _ARITHMETIC.items():
        add_rule(target, _arithmetic(operator))
    for name, operator in _COMPARISONS.items():
        for overload in ("Tensor", "Scalar"):
            add_rule(getattr(getattr(aten, name), overload), _comparison(operator))


_register()


@rule(*_IDENTITIES)
def identity(b: Builder, x: Value) -> str:
    return x


@rule(aten.dropout.default, aten.feature_dropout.default)
def dropout(b: Builder, x: Value, p: float, train: bool) -> str:
    if train and p > 0:
        raise Refusal("dropout is in training mode", "program.eval()")
    return x


@rule(aten._to_copy.default, aten.to.dtype, aten.type_as.default)
def to_copy(b: Builder, x: Value) -> str:
    return b.cast(x, b.result.dtype)


# -- arithmetic ------------------------------------------------------------------------------------------------------


@rule(aten.add.Tensor, aten.add.Scalar)
def add(b: Builder, x: Any, y: Any, alpha: Any = 1) -> str:
    dtype = b.result.dtype
    if dtype == torch.bool:
        return b.op("Or", x, y)
    operator = "Sum" if _is_normalized(b) else "Add"
    return b.op(operator, b.operand(x, dtype), _scaled(b, y, alpha, dtype))


def _is_normalized(b: Builder) -> bool:
    """Whether a layer norm reads the sum, in float.

    ONNX Runtime fuses such an Add into SkipLayerNormalization, which takes three times as long as Add and
    LayerNormalization; Sum is the same and is left alone. Measured with 1.32: an INT8 encoder takes 0.82 of the time.
    """
    norms = any(user.target is aten.layer_norm.default and user.args[0] is b.node for user in b.node.users)
    return norms and b.options.contrib and not b.integer and b.result.dtype is torch.float32


@rule(aten.sub.Tensor, aten.sub.Scalar)
def sub(b: Builder, x: Any, y: Any, alpha: Any = 1) -> str:
    dtype = b.result.dtype
    return b.op("Sub", b.operand(x, dtype), _scaled(b, y, alpha, dtype))


@rule(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(b: Builder, x: Any, y: Any, alpha: Any = 1) -> str:
    dtype = b.result.dtype
    return b.op("Sub", b.operand(y, dtype), _scaled(b, x, alpha, dtype))


def _scaled(b: Builder, x: Any, alpha: Any, dtype: torch.dtype) -> str:
    if alpha == 1:
        return b.operand(x, dtype)
    return b.op("Mul", b.operand(x, dtype), b.operand(alpha, dtype))


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(b: Builder, x: Any, y: Any, *, rounding_mode: str | None) -> str:
    if rounding_mode == "floor":
        return floor_divide(b, x, y)
    dtype = b.result.dtype
    ratio = b.op("Div", b.operand(x, dtype), b.operand(y, dtype))
    if rounding_mode is None or not dtype.is_floating_point:
        return ratio  # ONNX rounds an integer quotient toward zero
    return b.op("Mul", b.op("Sign", ratio), b.op("Floor", b.op("Abs", ratio)))


@rule(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(b: Builder, x: Any, y: Any) -> str:
    dtype = b.result.dtype
    x, y = b.operand(x, dtype), b.operand(y, dtype)
    if dtype.is_floating_point:
        return b.op("Floor", b.op("Div", x, y))
    return b.op("Div", b.op("Sub", x, b.op("Mod", x, y)), y)


@rule(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def remainder(b: Builder, x: Any, y: Any) -> str:
    dtype = b.result.dtype
    x, y = b.operand(x, dtype), b.operand(y, dtype)
    if not dtype.is_floating_point:
        return b.op("Mod", x, y)
    # With fmod the remainder has the sign of x; shifted by y and taken once more it has that of y.
    return b.op("Mod", b.op("Add", b.op("Mod", x, y, fmod=1), y), y, fmod=1)


@rule(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(b: Builder, x: Any, y: Any) -> str:
    dtype = b.result.dtype
    return b.op("Mod", b.operand(x, dtype), b.operand(y, dtype), fmod=1)


@rule(aten.rsqrt.default)
def rsqrt(b: Builder, x: Value) -> str:
    return b.op("Reciprocal", b.op("Sqrt", b.cast(x, b.result.dtype)))


@rule(aten.log1p.default)
def log1p(b: Builder, x: Value) -> str:
    return b.op("Log", b.op("Add", b.cast(x, b.result.dtype), b.number(1, b.result.dtype)))


@rule(aten.expm1.default)
def expm1(b: Builder, x: Value) -> str:
    return b.op("Sub", b.op("Exp", b.cast(x, b.result.dtype)), b.number(1, b.result.dtype))


@rule(aten.exp2.default)
def exp2(b: Builder, x: Value) -> str:
    return b.op("Pow", b.number(2, b.result.dtype), b.cast(x, b.result.dtype))


@rule(aten.log2.default)
def log2(b: Builder, x: Value) -> str:
    return b.op("Mul", b.op("Log", b.cast(x, b.result.dtype)), b.number(1 / math.log(2), b.result.dtype))


@rule(aten.log10.default)
def log10(b: Builder, x: Value) -> str:
    return b.op("Mul", b.op("Log", b.cast(x, b.result.dtype)), b.number(1 / math.log(10), b.result.dtype))


@rule(aten.square.default)
def square(b: Builder, x: Value) -> str:
    return b.op("Mul", x, x)


@rule(aten.trunc.default)
def trunc(b: Builder, x: Value) -> str:
    return b.op("Mul", b.op("Sign", x), b.op("Floor", b.op("Abs", x))) if x.dtype.is_floating_point else x


# -- logic -----------------------------------------------------------------------------------------------------------


@rule(aten.ne.Tensor, aten.ne.Scalar)
def ne(b: Builder, x: Any, y: Any) -> str:
    return b.op("Not", b.op("Equal", *b.promoted(x, y)[1]))


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(b: Builder, condition: Value, x: Any, y: Any) -> str:
    dtype = b.result.dtype
    return b.op("Where", b.cast(condition, torch.bool), b.operand(x, dtype), b.operand(y, dtype))


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(b: Builder, x: Value, mask: Value, value: Any) -> str:
    return b.op("Where", mask, b.operand(value, x.dtype), x)
