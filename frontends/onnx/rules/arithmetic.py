"""Rules for arithmetic on integers and bits, and for operators that take any number of inputs."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from ..call import Call
from ..registry import Function, add_rule, rule
from ..values import Known, Value
from .elementwise import from_order, number, ordered, widened

aten = torch.ops.aten

_INT64_MAX = torch.iinfo(torch.int64).max
_INT64_MIN = torch.iinfo(torch.int64).min


@rule("Mod")
def mod(op: Call) -> Value:
    """The remainder has the sign of the divisor; with `fmod` that of the dividend."""
    like_c = bool(op.attr_int("fmod", 0))
    if op.dtype(op.input(0)) is torch.uint64:
        return _unsigned_remainder(op)
    left, right = widened(op, op.input(0)), widened(op, op.input(1))
    constant = number(op, left, right)
    if constant is not None:
        return op.cast(op.call((aten.fmod if like_c else aten.remainder).Scalar, left, constant), op.dtype(op.input(0)))
    return op.cast(op.call((aten.fmod if like_c else aten.remainder).Tensor, left, right), op.dtype(op.input(0)))


def _unsigned_remainder(op: Call) -> Value:
    """Of uint64 in int64, where what is beyond its half is negative.

    Twice the remainder of half the dividend, and its last bit, is at most one divisor too much; where the divisor is
    beyond the half, so is the dividend itself.
    """
    x, y = (widened(op, op.input(index)) for index in (0, 1))
    one: Value = Known(torch.tensor(1))
    half = op.call(aten.bitwise_and.Scalar, op.call(aten.bitwise_right_shift.Tensor, x, one), _INT64_MAX)
    small = op.call(aten.mul.Tensor, op.call(aten.remainder.Tensor, half, y), 2)
    small = op.call(aten.add.Tensor, small, op.call(aten.bitwise_and.Scalar, x, 1))
    rest = op.call(aten.where.self, op.call(aten.lt.Scalar, y, 0), x, small)
    below = op.call(aten.lt.Tensor, *(op.call(aten.bitwise_xor.Scalar, value, _INT64_MIN) for value in (rest, y)))
    return op.cast(op.call(aten.where.self, below, rest, op.call(aten.sub.Tensor, rest, y)), torch.uint64)


@rule("Sum")
def total(op: Call) -> Value:
    values = [widened(op, value) for value in op.inputs]
    return op.cast(reduce(lambda left, right: op.call(aten.add.Tensor, left, right), values), op.dtype(op.input(0)))


def _extreme(target: Any) -> Function:
    def combine(op: Call) -> Value:
        values = [ordered(op, value) for value in op.inputs]
        return from_order(op, reduce(lambda left, right: op.call(target, left, right), values), op.dtype(op.input(0)))

    return combine


add_rule("Max", _extreme(aten.maximum.default))
add_rule("Min", _extreme(aten.minimum.default))


@rule("Mean")
def mean(op: Call) -> Value:
    total = reduce(lambda left, right: op.call(aten.add.Tensor, left, right), op.inputs)
    return total if len(op.inputs) == 1 else op.call(aten.div.Tensor, total, len(op.inputs))


@rule("BitShift")
def bit_shift(op: Call) -> Value:
    direction, dtype = op.attr_str("direction"), op.dtype(op.input(0))
    if direction not in ("LEFT", "RIGHT"):
        op.refuse("the direction is not known", expected="LEFT or RIGHT", found=direction)
    x, amount = widened(op, op.input(0)), widened(op, op.input(1))
    if direction == "LEFT":
        return op.cast(op.call(aten.bitwise_left_shift.Tensor, x, amount), dtype)
    if dtype is torch.uint64:
        return op.cast(_logical_right_shift(op, x, amount), dtype)
    return op.cast(op.call(aten.bitwise_right_shift.Tensor, x, amount), dtype)


def _logical_right_shift(op: Call, x: Value, amount: Value) -> Value:
    """Of int64 as if it were uint64: the first step clears the sign, the others keep it clear."""
    one: Value = Known(torch.tensor(1))
    halved = op.call(aten.bitwise_right_shift.Tensor, x, one)
    halved = op.call(aten.bitwise_and.Scalar, halved, _INT64_MAX)
    rest = op.call(aten.clamp.default, op.call(aten.sub.Tensor, amount, one), 0)
    shifted = op.call(aten.bitwise_right_shift.Tensor, halved, rest)
    return op.call(aten.where.self, op.call(aten.eq.Scalar, amount, 0), x, shifted)


@rule("BitCast")
def bit_cast(op: Call) -> Value:
    x, dtype = op.input(0), op.attr_dtype("to")
    if dtype.itemsize != op.dtype(x).itemsize:
        op.refuse("the types differ in size", expected=f"{op.dtype(x).itemsize} bytes", found=dtype)
    return op.call(aten.view.dtype, x, dtype)


@rule("IsInf")
def is_inf(op: Call) -> Value:
    x = op.input(0)
    negative, positive = op.attr_int("detect_negative", 1), op.attr_int("detect_positive", 1)
    if negative and positive:
        return op.call(aten.isinf.default, x)
    if not negative and not positive:
        return op.call(aten.zeros_like.default, x, dtype=torch.bool)
    return op.call(aten.eq.Scalar, x, float("-inf") if negative else float("inf"))
