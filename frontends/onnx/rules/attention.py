"""Rules for attention and rotary positions. Cases that PyTorch's operators do not cover are left to the standard's
function."""

from __future__ import annotations

from typing import Any

import torch

from ..call import Call
from ..registry import rule
from ..values import Value

aten = torch.ops.aten

_READ = frozenset(
    {"is_causal", "q_num_heads", "kv_num_heads", "scale", "softcap", "softmax_precision", "qk_matmul_output_mode"}
)
"""Attributes of Attention that this rule knows; later opsets add others."""


@rule("Attention", since=23)
def attention(op: Call) -> Value | None:
    """softmax(q @ k^T * scale + mask) @ v on [batch, heads, length, width], or on heads joined in the last axis."""
    tensors = [op.input(index) for index in range(3)]
    joined = op.rank(tensors[0]) == 3
    plain = {attribute.name for attribute in op.proto.attribute} <= _READ and not op.attr_float("softcap", 0.0)
    if not plain or _keeps_state(op) or len({op.dtype(tensor) for tensor in tensors}) > 1:
        return None
    if joined:
        heads = [op.attr_int("q_num_heads"), *[op.attr_int("kv_num_heads")] * 2]
        tensors = [_apart(op, tensor, count) for tensor, count in zip(tensors, heads, strict=True)]
    query, key, value = tensors
    mask, causal = op.optional(3), bool(op.attr_int("is_causal", 0))
    if not _mask_fits(op, mask, query, key, causal):
        return None
    grouped = op.size(query, 1) != op.size(key, 1)
    options: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    if op.has_attr("scale"):
        options["scale"] = op.attr_float("scale")
    result = op.call(aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, causal, **options)
    if not joined:
        return result
    batch, heads_, length, width = op.shape(result)
    merged = op.call(aten.permute.default, result, [0, 2, 1, 3])
    return op.call(aten.reshape.default, merged, [batch, length, op.importer.product([heads_, width])])


def _keeps_state(op: Call) -> bool:
    """Whether it reads or gives anything but the plain result, or takes the softmax in another type."""
    types = {torch.float32: (0, 1), torch.float16: (0, 10), torch.bfloat16: (0, 16), torch.float64: (0, 11)}
    precise = op.attr_int("softmax_precision", 0) not in types.get(op.dtype(op.input(0)), ())
    return precise or any(op.has(index) for index in (4, 5, 6)) or any(op.wants(index) for index in (1, 2, 3))


def _mask_fits(op: Call, mask: Value | None, query: Value, key: Value, causal: bool) -> bool:
    if mask is None:
        return True
    typed = op.dtype(mask) in (torch.bool, op.dtype(query))
    full = op.shape(mask)[-2:] == [op.size(query, -2), op.size(key, -2)]
    return typed and full and not causal


def _apart(op: Call, x: Value, heads: int) -> Value:
    """[batch, length, heads * width] as [batch, heads, length, width]."""
    batch, length, _ = op.shape(x)
    return op.call(aten.permute.default, op.call(aten.reshape.default, x, [batch, length, heads, -1]), [0, 2, 1, 3])


@rule("RotaryEmbedding", since=23)
def rotary_embedding(op: Call) -> Value | None:
    """x * cos + (-second half, first half) * sin, as models in PyTorch write it."""
    x, cosines, sines = op.input(0), op.input(1), op.input(2)
    if op.rank(x) != 4 or op.attr_int("interleaved", 0) or op.attr_int("rotary_embedding_dim", 0):
        return None
    width = op.size(x, 3)
    if not isinstance(width, int) or op.size(cosines, -1) != width // 2:
        return None
    cosines, sines = _rows(op, cosines), _rows(op, sines)
    first = op.call(aten.slice.Tensor, x, 3, 0, width // 2)
    second = op.call(aten.slice.Tensor, x, 3, width // 2, width)
    turned = op.call(aten.cat.default, [op.call(aten.neg.default, second), first], -1)
    straight = op.call(aten.mul.Tensor, x, cosines)
    return op.call(aten.add.Tensor, straight, op.call(aten.mul.Tensor, turned, sines))


def _rows(op: Call, cache: Value) -> Value:
    """The rows of a cache for these positions, twice as wide and with an axis for the heads."""
    if op.has(3):
        cache = op.call(aten.index.Tensor, cache, [op.input(3)])
    return op.call(aten.unsqueeze.default, op.call(aten.cat.default, [cache, cache], -1), 1)
