"""Rules for operators that draw random numbers: PyTorch's, from its generator. A seed in the file is not kept."""

from __future__ import annotations

from typing import Any

import torch

from ..call import Call
from ..registry import rule
from ..values import Value

aten = torch.ops.aten


def _drawn(op: Call, target: Any, sizes: list[Any], like: torch.dtype, factor: float, shift: float) -> Value:
    dtype = op.attr_dtype("dtype") if op.has_attr("dtype") else like
    drawn = op.call(target, sizes, dtype=dtype)
    scaled = drawn if factor == 1 else op.call(aten.mul.Tensor, drawn, factor)
    return scaled if shift == 0 else op.call(aten.add.Tensor, scaled, shift)


def _where(op: Call) -> tuple[list[Any], torch.dtype]:
    """The sizes, stated or those of the input, and the type where none is stated."""
    if not op.proto.op_type.endswith("Like"):
        return list(op.attr_ints("shape")), torch.float32
    x = op.input(0)
    return op.shape(x), op.dtype(x)


@rule("RandomUniform", "RandomUniformLike")
def random_uniform(op: Call) -> Value:
    low, high = op.attr_float("low", 0.0), op.attr_float("high", 1.0)
    return _drawn(op, aten.rand.default, *_where(op), high - low, low)


@rule("RandomNormal", "RandomNormalLike")
def random_normal(op: Call) -> Value:
    return _drawn(op, aten.randn.default, *_where(op), op.attr_float("scale", 1.0), op.attr_float("mean", 0.0))


@rule("Bernoulli", since=15)
def bernoulli(op: Call) -> Value:
    """Ones with the probability that stands in their place."""
    x = op.input(0)
    return op.cast(op.call(aten.bernoulli.default, x), op.attr_dtype("dtype") if op.has_attr("dtype") else op.dtype(x))


@rule("Multinomial")
def multinomial(op: Call) -> Value:
    """Classes drawn with replacement, by logarithms of their weights."""
    weights = op.call(aten.softmax.int, op.input(0), -1)
    drawn = op.call(aten.multinomial.default, weights, op.attr_int("sample_size", 1), True)
    return op.cast(drawn, op.attr_dtype("dtype", 6))
