"""Rules for attention: one operator where the target has it, else products and a softmax."""

from __future__ import annotations

import math
from typing import Any

import torch

from tersor.passes.arguments import argument

from .builder import Builder, Value
from .dtypes import element_type, tensor_proto
from .heads import Heads, heads_first
from .normalization import softmax_or_zeros
from .registry import Refusal, rule

aten = torch.ops.aten

_HIDES = -30_000.0
"""Added to a score, it leaves exp(score) at zero, and both stay within float16."""

_LEAST = torch.finfo(torch.float32).min / 2
"""Any score is lost in it, so it hides as the least float does, which ONNX Runtime takes for minus infinity."""


@rule(aten.scaled_dot_product_attention.default)
def attention(
    b: Builder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None,
    enable_gqa: bool,
) -> str:
    """softmax(query @ key^T * scale + mask) @ value, query [..., L, E], key [..., S, E], value [..., S, Ev]."""
    if dropout_p > 0:
        raise Refusal("attention drops out values, as in training", "trace the model in eval mode")
    mask = None if mask is not None and _hides_nothing(b, query, mask) else mask
    whole = _whole(b, query, key, value, mask, is_causal, scale) if b.options.whole_attention else None
    if whole is not None:
        return whole
    keys, values = (_repeat_heads(b, v, query) if enable_gqa else v for v in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    half = b.options.half_attention and query.dtype == torch.float32
    dtype = torch.float16 if half else query.dtype
    queries: str = query
    if half:
        queries, factor = b.op("Mul", query, b.number(factor, torch.float32)), 1.0
        queries, keys, values = (b.op("Cast", v, to=element_type(dtype)) for v in (queries, keys, values))
    perm = [*range(key.rank - 2), key.rank - 1, key.rank - 2]
    scores = b.op("MatMul", queries, b.op("Transpose", keys, perm=perm))
    scores = scores if factor == 1 else b.op("Mul", scores, b.number(factor, dtype))
    if is_causal:
        weights = b.op("Softmax", b.op("Add", scores, _additive(b, _causal_mask(b, query, key), dtype)), axis=-1)
    else:
        weights = _masked_softmax(b, scores, mask, dtype)
    result = b.op("MatMul", weights, values)
    return b.op("Cast", result, to=element_type(query.dtype)) if half else result


def _masked_softmax(b: Builder, scores: str, mask: Value | None, dtype: torch.dtype) -> str:
    """ATen gives zeros where a whole row is masked, for which ONNX's softmax gives NaN."""
    if mask is None:
        return b.op("Softmax", scores, axis=-1)
    masked = b.op("Add", scores, _additive(b, mask, dtype))
    if _shows_every_row(b, mask):
        return b.op("Softmax", masked, axis=-1)
    if not b.options.half_attention:
        return softmax_or_zeros(b, masked, dtype)
    weights = b.op("Softmax", masked, axis=-1)  # the form that TensorRT takes into its kernel, which hides any NaN
    return b.op("Where", b.op("IsNaN", weights), b.number(0, dtype), weights)


def _additive(b: Builder, mask: Value, dtype: torch.dtype) -> str:
    """Zero to see and minus infinity to hide: adding that is faster than choosing, as the mask is smaller.

    Where a mask is narrowed to float16, numbers that hide are kept finite, so that a row of them alone stays finite.
    """
    if mask.dtype != torch.bool:
        narrowed = dtype == torch.float16 and mask.dtype != dtype
        finite = b.op("Max", mask, b.number(_HIDES, mask.dtype)) if narrowed else mask
        return b.cast(finite, dtype)
    return b.op("Where", mask, b.number(0, dtype), b.number(-math.inf, dtype))


def _shows_every_row(b: Builder, mask: Value) -> bool:
    """Whether it is known that no row is hidden as a whole."""
    tensor = b.program.constant(argument(b.node, "attn_mask"))
    if tensor is None or not mask.rank:
        return False
    seen = tensor if tensor.dtype == torch.bool else tensor != -math.inf
    return bool(seen.any(-1).all())


def _hides_nothing(b: Builder, query: Value, mask: Value) -> bool:
    """Whether it is known that a mask changes no score, and no size of the result."""
    tensor = b.program.constant(argument(b.node, "attn_mask"))
    plain = tensor is not None and bool((tensor if tensor.dtype == torch.bool else tensor == 0).all())
    return plain and all(map(b.same_size, query.shape[:-1], b.result.shape[:-1]))


def _hides_by_infinity(b: Builder, mask: Value) -> bool:
    """Whether it is known of a float mask that no finite number in it hides."""
    tensor = b.program.constant(argument(b.node, "attn_mask"))
    return tensor is not None and bool(((tensor == -math.inf) | (tensor > _LEAST)).all())


def _causal_mask(b: Builder, query: Value, key: Value) -> Value:
    """Row i sees columns 0 to i."""
    sizes = b.op("Concat", *(b.shape(v, v.rank - 2, v.rank - 1) for v in (query, key)), axis=0)
    ones = b.op("ConstantOfShape", sizes, value=tensor_proto("value", torch.tensor([1], dtype=torch.int32)))
    mask = b.op("Cast", b.op("Trilu", ones, upper=0), to=9)  # 9 is BOOL
    return Value(mask, torch.empty(0, 0, dtype=torch.bool, device="meta"))


def _repeat_heads(b: Builder, x: Value, query: Value) -> str:
    """Each head of key or value serves as many consecutive heads of the query: [..., H, S, E], H divides Hq."""
    times = query.shape[-3] // x.shape[-3]
    axis = x.rank - 2
    repeated = b.op("Expand", b.op("Unsqueeze", x, b.ints(axis)), b.ints(times, 1, 1))
    lead = [b.shape(x, 0, axis - 1)] if axis > 1 else []
    return b.op("Reshape", repeated, b.op("Concat", *lead, b.ints(query.shape[-3]), b.shape(x, axis, x.rank), axis=0))


# -- as one operator -------------------------------------------------------------------------------------------------


def _whole(
    b: Builder, query: Value, key: Value, value: Value, mask: Value | None, is_causal: bool, scale: float | None
) -> str | None:
    """Attention of opset 23, on joined heads where all three were parted from such; None where it does not fit.

    Of a row that minus infinity hides as a whole ATen gives zeros, the operator zeros or NaN, by its version. So
    finite numbers hide it from the operator, and what it gives of it is multiplied with zero.
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if b.options.opset < 23 or factor <= 0 or not _fits(b, query, key, value, mask):
        return None
    heads = [b.heads[given] for given in (query, key, value) if given in b.heads and b.heads[given].first]
    joined = len(heads) == 3 and (mask is None or mask.rank < 3 or mask.shape[-3] == 1)
    given = [part.joined for part in heads] if joined else [query, key, value]
    bias, seen = (None, None) if mask is None else _bias(b, mask, _lengths(b, query, key, heads if joined else []))
    attributes: dict[str, Any] = {"scale": factor, "is_causal": int(is_causal)}
    if joined:
        attributes |= {"q_num_heads": query.shape[1], "kv_num_heads": key.shape[1]}
    result = b.op("Attention", *given, bias, **attributes)
    if seen is not None:
        narrow = joined and mask is not None and mask.rank > 2
        result = b.op("Mul", result, b.op("Squeeze", seen, b.ints(1)) if narrow else seen)
    return heads_first(b, result, b.result) if joined else result


def _fits(b: Builder, query: Value, key: Value, value: Value, mask: Value | None) -> bool:
    """Whether the operator takes these: ATen broadcasts more than it does."""
    ranks = [given.rank for given in (query, key, value)] + ([] if mask is None else [mask.rank])
    if query.dtype != torch.float32 or ranks[:3] != [4, 4, 4] or not 1 <= ranks[-1] <= 4:
        return False
    counts = [given.shape[1] for given in (query, key, value)]
    if not all(isinstance(count, int) and count for count in counts) or counts[1] != counts[2] or counts[0] % counts[1]:
        return False
    if mask is not None and mask.rank > 2 and mask.shape[-3] != 1 and counts[0] != counts[1]:
        return False  # versions of ONNX Runtime want a mask for each head of the keys
    return all(b.same_size(query.shape[0], other.shape[0]) for other in (key, value))


def _lengths(b: Builder, query: Value, key: Value, heads: list[Heads]) -> tuple[list[Any], list[str]]:
    """How many queries and keys there are: as sizes, and as values."""
    sizes = [query.shape[2], key.shape[2]]
    places = [(part.joined, 1) for part in heads[:2]] if heads else [(query, 2), (key, 2)]
    pairs = zip(sizes, places, strict=True)
    return sizes, [b.ints(n) if isinstance(n, int) else b.shape(x, axis, axis + 1) for n, (x, axis) in pairs]


def _bias(b: Builder, mask: Value, lengths: tuple[list[Any], list[str]]) -> tuple[str, str | None]:
    """What is added to the scores, [.., L, S], and the rows that see anything as ones, [.., L, 1]; None if all do."""
    visible = mask.dtype == torch.bool
    given: str = mask if visible else b.cast(mask, torch.float32)
    if mask.rank == 3:
        given = b.op("Unsqueeze", given, b.ints(0))
    if mask.rank < 2 or not all(map(b.same_size, mask.shape[-2:], lengths[0])):
        given = b.op("Expand", given, b.op("Concat", *lengths[1], axis=0))
    if not visible and _hides_by_infinity(b, mask) and _shows_every_row(b, mask):
        return given, None
    least = b.number(_LEAST, torch.float32)
    finite = b.op("Where", given, b.number(0, torch.float32), least) if visible else b.op("Max", given, least)
    if _shows_every_row(b, mask):
        return finite, None
    largest = b.op("ReduceMax", finite if visible else given, b.ints(-1), keepdims=1)
    seen = b.op("Greater", largest, least if visible else b.number(-math.inf, torch.float32))
    return finite, b.op("Cast", seen, to=element_type(torch.float32))
