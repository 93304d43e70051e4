"""Rules for logic: on booleans, on the bits of integers, and on what is no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .builder import Builder, Value
from .registry import add_rule, rule

aten = torch.ops.aten


def _bitwise(name: str) -> Callable[[Builder, Any, Any], str]:
    def emit(b: Builder, x: Any, y: Any) -> str:
        dtype, operands = b.promoted(x, y)
        return b.op(name if dtype == torch.bool else f"Bitwise{name}", *operands)

    return emit


def _logical(name: str) -> Callable[[Builder, Any, Any], str]:
    def emit(b: Builder, x: Value, y: Value) -> str:
        return b.op(name, b.cast(x, torch.bool), b.cast(y, torch.bool))

    return emit


for _word, _operator in (("and", "And"), ("or", "Or"), ("xor", "Xor")):
    for _overload in ("Tensor", "Scalar"):
        for _packet in (f"bitwise_{_word}", f"__{_word}__"):
            add_rule(getattr(getattr(aten, _packet), _overload), _bitwise(_operator))
    add_rule(getattr(aten, f"logical_{_word}").default, _logical(_operator))


@rule(aten.bitwise_not.default)
def bitwise_not(b: Builder, x: Value) -> str:
    return b.op("Not" if x.dtype == torch.bool else "BitwiseNot", x)


@rule(aten.logical_not.default)
def logical_not(b: Builder, x: Value) -> str:
    return b.op("Not", b.cast(x, torch.bool))


@rule(aten.isnan.default)
def isnan(b: Builder, x: Value) -> str:
    return b.op("IsNaN", x)


@rule(aten.isinf.default)
def isinf(b: Builder, x: Value) -> str:
    return b.op("IsInf", x)
