"""Rules for attention and rotary positions. Cases that PyTorch's operators do not cover are left to the standard's
function."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ..call import Call, shortest
from ..registry import rule
from ..values import Known, Value

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

    hidden = None if mask is None else _hidden(op, mask)
    if hidden is not None:
        op.node(hidden.mask)  # before the attention, which may read it in the end
    given = hidden.mask if hidden is not None and _every_row_sees(mask) else mask
    attended = op.call(aten.scaled_dot_product_attention.default, query, key, value, given, 0.0, causal, **options)
    result = _together(op, attended) if joined else attended
    if hidden is not None and isinstance(attended, fx.Node) and isinstance(result, fx.Node):
        op.importer.attention[result] = replace(hidden, attention=attended, joined=joined)
    return result


# -- Rows that see nothing ---------------------------------------------------------------------------------------------

_LEAST = torch.finfo(torch.float32).min / 2
"""Hides what is not to be seen, where minus infinity would leave rows without any number."""


@dataclass(frozen=True, eq=False)
class Hidden:
    """A float mask that hides by `_LEAST`, so that a row which sees nothing has numbers, of no meaning.

    mask: the same as PyTorch has it: boolean, or with minus infinity, for which such a row gives zeros.
    source, below: a row sees anything where its greatest number in `source` is greater than `below`.
    attention: the node that computes it. joined: whether the result has heads joined in the last axis.
    """

    mask: Value
    source: Value
    below: float
    attention: fx.Node | None = None
    joined: bool = False


def _hidden(op: Call, mask: Value) -> Hidden | None:
    """Of a mask that hides by `_LEAST`, what it was made of; None for any other."""
    if op.dtype(mask) is not torch.float32:
        return None
    if isinstance(mask, Known):
        return op.importer.once(("hidden", mask), lambda: _hidden_constant(mask))
    if not isinstance(mask, fx.Node):
        return None
    values: list[Any] = list(mask.args)
    numbers = [known.tensor for value in values if (known := op.importer.known(value)) is not None]
    if any(number.numel() != 1 for number in numbers) or not numbers or float(numbers[-1]) != _LEAST:
        return None
    same = op.shape(values[0]) == op.shape(mask)
    if mask.target is aten.where.self and same and len(numbers) == 2 and float(numbers[0]) == 0:
        return Hidden(values[0], mask, _LEAST)
    if mask.target is aten.maximum.default and same and len(numbers) == 1:
        return Hidden(values[0], values[0], -math.inf)
    return None


def _every_row_sees(mask: Value | None) -> bool:
    """Whether a mask is known to leave something in each row, and hides something."""
    known = mask.tensor if isinstance(mask, Known) else None
    return known is not None and bool((known == _LEAST).any()) and bool((known > _LEAST).any(-1).all())


def _hidden_constant(mask: Known) -> Hidden:
    hides = mask.tensor == _LEAST
    if bool((hides | (mask.tensor == 0)).all()):
        return Hidden(Known(~hides, mask.name), mask, _LEAST)
    return Hidden(replace(mask, tensor=mask.tensor.masked_fill(hides, -math.inf)), mask, _LEAST)


def attention_of_seen_rows(op: Call) -> Value | None:
    """Mul, where it makes zero those rows of attention that see nothing, which PyTorch's does; None for any other."""
    for index in (0, 1):
        result, rows = op.input(index), op.input(1 - index)
        found = op.importer.attention.get(result) if isinstance(result, fx.Node) else None
        if isinstance(found, Hidden) and op.only_reader(index) and _are_seen_rows(op, rows, found):
            assert found.attention is not None, "noted with its node"
            found.attention.update_arg(3, op.node(found.mask))
            op.importer.fresh.add(result)  # type: ignore[arg-type]  # a node, which takes the name of the product
            return result
    return None


def _are_seen_rows(op: Call, rows: Value, hidden: Hidden) -> bool:
    """Whether these are ones for the rows that see anything, and zeros for the others."""
    rank = op.rank(hidden.source)
    narrow = hidden.joined and rank > 2
    if isinstance(rows, Known) and isinstance(hidden.source, Known):
        seen = (hidden.source.tensor.amax(-1, keepdim=True) > hidden.below).float()
        return torch.equal(rows.tensor, seen.squeeze(1) if narrow else seen)
    steps: list[tuple[Any, tuple[Any, ...]]] = [(aten.squeeze.dim, (1,))] if narrow else []
    steps += [
        (aten._to_copy.default, ()),
        (aten.gt.Scalar, (shortest(hidden.below, torch.float32),)),
        (aten.amax.default, ([rank - 1], True)),
    ]
    value: Any = rows
    for target, rest in steps:
        if not isinstance(value, fx.Node) or value.target is not target or value.args[1:] != rest:
            return False
        value = value.args[0]
    return op.dtype(rows) is torch.float32 and value is hidden.source


def _together(op: Call, result: Value) -> Value:
    """[batch, heads, length, width] as [batch, length, heads * width]."""
    batch, heads, length, width = op.shape(result)
    merged = op.call(aten.permute.default, result, [0, 2, 1, 3])
    return op.call(aten.reshape.default, merged, [batch, length, op.importer.product([heads, width])])


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
