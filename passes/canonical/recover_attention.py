"""Attention written out, as eager models and ONNX exporters do: softmax(q @ k^T * scale + mask) @ v.

    %permute = permute(%k, [0, 1, 3, 2])
    %matmul = matmul(%q, %permute)
    %mul = mul(%matmul, 0.25)                       %sdpa = scaled_dot_product_attention(%q, %k, %v, %mask, scale=0.25)
    %add = add(%mul, %mask)
    %softmax = softmax(%add, -1)
    %matmul_1 = matmul(%softmax, %v)

The scale may stand at the product or be shared between its operands. A mask is added, or put in as minus infinity. A
row whose every column is hidden by minus infinity is NaN as written, unless it is replaced by zero, where the result is
NaN or where the greatest score is minus infinity; as one operator it is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tersor.ir.shapes import KEY

from ..arguments import argument, set_argument
from .rules import Context, Rule

aten = torch.ops.aten

_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_CHOICES = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
_NEAR = 1e-6
"""How far a scale whose root stands at either operand, in float32, may be from the usual one."""


@dataclass(frozen=True)
class Filled:
    """A tensor in which a number stands where a condition holds, or where it does not."""

    source: fx.Node
    condition: fx.Node
    number: float
    where: bool


def filled(context: Context, node: fx.Node) -> Filled | None:
    """A call that puts a number in places of a tensor."""
    if node.target is aten.masked_fill.Scalar:
        source, condition, number = node.args
        return Filled(source, condition, float(number), True)  # type: ignore[arg-type]  # by the schema
    if node.target not in _CHOICES:
        return None
    condition, chosen, other = node.args
    if context.number(chosen) is not None and context.number(other) is not None:
        return None
    for source, value, where in ((other, chosen, True), (chosen, other, False)):
        number = context.number(value)
        if number is not None and isinstance(source, fx.Node) and isinstance(condition, fx.Node):
            return Filled(source, condition, float(number), where)
    return None


def attention(context: Context, node: fx.Node) -> fx.Node | None:
    """A product of softmax weights and values."""
    weights, value = node.args
    scores = _scores(context, weights, node)
    if scores is None or not isinstance(value, fx.Node):
        return None
    for logits, mask in _masks(context, scores):
        product, factor = _scaled(context, logits)
        if product.target in _PRODUCTS and len(product.users) == 1 and context.same_type(product, scores):
            return _attention(context, node, product, value, mask, factor)
    return None


def _scores(context: Context, weights: Any, user: fx.Node) -> fx.Node | None:
    """What the softmax is of, whether rows that are hidden as a whole become zero or not; None where there is none."""
    softmax, guard = weights, set[fx.Node]()
    fill = filled(context, weights) if isinstance(weights, fx.Node) else None
    if fill is not None:
        softmax, guard = fill.source, _guard(fill)
        if not guard or set(weights.users) != {user}:
            return None
        user = weights
    if not isinstance(softmax, fx.Node) or softmax.target not in _SOFTMAX or set(softmax.users) - guard != {user}:
        return None
    scores: Any = softmax.args[0]
    last = argument(softmax, "dim") in (-1, softmax.meta[KEY].dim() - 1)
    alone = set(scores.users) - guard == {softmax}
    return scores if last and alone and context.same_type(scores, softmax) else None


def _guard(fill: Filled) -> set[fx.Node]:
    """What asks where to put zeros: the result of a softmax for NaN, or its input for the greatest of each row.

    Empty where zeros, or other numbers, are put in for another reason.
    """
    softmax, asks = fill.source, fill.condition
    if softmax.target not in _SOFTMAX or fill.number != 0 or not fill.where:
        return set()
    read: Any = asks.args[0] if asks.args else None
    guard = {asks}
    if asks.target is aten.eq.Scalar and asks.args[1] == -math.inf and read.target is aten.amax.default:
        dims, rank = argument(read, "dim"), softmax.meta[KEY].dim()
        whole = read.args[0] is softmax.args[0] and dims in ([-1], [rank - 1]) and argument(read, "keepdim")
        guard.add(read)
    else:
        whole = asks.target is aten.isnan.default and read is softmax
    return guard if whole and all(len(node.users) == 1 for node in guard) else set()


def _masks(context: Context, scores: fx.Node) -> list[tuple[fx.Node, Any]]:
    """The ways to read scores as logits and a mask: a float one is added, a boolean one is true where to look."""
    ways: list[tuple[fx.Node, Any]] = [(scores, None)]
    fill = filled(context, scores)
    if fill is not None and fill.number == -math.inf and len(fill.source.users) == 1:
        ways.append((fill.source, fill))
    if scores.target is aten.add.Tensor and argument(scores, "alpha") == 1:
        left, right = list[Any](scores.args)
        ways += [(a, b) for a, b in ((left, right), (right, left)) if _may_mask(a, b)]
    return ways


def _may_mask(logits: Any, mask: Any) -> bool:
    if not isinstance(logits, fx.Node) or not isinstance(mask, fx.Node):
        return False
    return len(logits.users) == 1 and mask.meta[KEY].dtype is logits.meta[KEY].dtype


def _scaled(context: Context, node: fx.Node) -> tuple[fx.Node, float]:
    """A node as another one times a number, where nobody else uses it."""
    factor = 1.0
    while node.target in (aten.mul.Tensor, aten.div.Tensor) and len(node.users) == 1:
        left, right = node.args
        divides = node.target is aten.div.Tensor
        number = context.number(right)
        if number is None and not divides:
            left, number = right, context.number(left)
        if number is None or number == 0 or not isinstance(left, fx.Node) or not context.same_type(left, node):
            break
        factor, node = (factor / number if divides else factor * number), left
    return node, factor


def _attention(
    context: Context, node: fx.Node, product: fx.Node, value: fx.Node, mask: Any, factor: float
) -> fx.Node | None:
    query, turned = product.args
    if not isinstance(query, fx.Node) or not isinstance(turned, fx.Node) or not _fit(context, query, turned, value):
        return None
    order = list(range(query.meta[KEY].dim()))
    before = node.prev
    key = context.call(node, aten.permute.default, turned, [*order[:-2], order[-1], order[-2]])
    if isinstance(mask, Filled):
        mask = context.call(node, aten.logical_not.default, mask.condition) if mask.where else mask.condition
    scale = _usual(factor, context.shape(query)[-1])
    new = context.instead(node, aten.scaled_dot_product_attention.default, query, key, value, mask, scale=scale)
    while new is None and node.prev is not before:
        context.program.graph.erase_node(node.prev)
    return new


def scaled_operand(context: Context, node: fx.Node) -> fx.Node | None:
    """A query or key that was multiplied by a number: the number belongs to the scale."""
    for index, name in enumerate(("query", "key")):
        operand = argument(node, name)
        turned = operand.target is aten.permute.default and len(operand.users) == 1
        start = operand.args[0] if turned else operand
        source, factor = _scaled(context, start)
        width, scale = context.shape(operand)[-1], argument(node, "scale")
        if source is start or (scale is None and not isinstance(width, int)):
            continue
        scale = 1 / math.sqrt(int(width)) if scale is None else scale
        node.update_arg(index, context.call(node, aten.permute.default, source, operand.args[1]) if turned else source)
        node.update_kwarg("scale", _usual(scale * factor, width))
        return node
    return None


def _fit(context: Context, query: fx.Node, turned: fx.Node, value: fx.Node) -> bool:
    """Whether query [..., L, E], turned key [..., E, S] and value [..., S, Ev] agree in all leading axes, and in dtype.

    One key and value may serve several heads. Matrices without leading axes are left alone, since attention has at
    least a batch.
    """
    queries, keys, values = (context.shape(tensor)[:-2] for tensor in (query, turned, value))
    dtypes = {tensor.meta[KEY].dtype for tensor in (query, turned, value)}
    if not queries or len(keys) != len(queries) or keys != values or len(dtypes) > 1:
        return False
    return all(key in (one, 1) for one, key in zip(queries, keys, strict=True))


def _usual(factor: float, width: int | str) -> float:
    """A scale as exactly 1 / sqrt(width), where it is that up to rounding."""
    usual = 1 / math.sqrt(width) if isinstance(width, int) and width else math.nan
    return usual if math.isclose(factor, usual, rel_tol=_NEAR) else factor


def boolean_mask(context: Context, node: fx.Node) -> fx.Node | None:
    """A float mask of zero and minus infinity: where it is zero.

    The least float hides as well, but in a row where all is hidden, which it leaves even.
    """
    mask = argument(node, "attn_mask")
    if not isinstance(mask, fx.Node) or mask.meta[KEY].dtype is torch.bool:
        return None
    seen = _seen(context, node, mask)
    if seen is None:
        return None
    set_argument(node, "attn_mask", seen)
    return node


def _seen(context: Context, node: fx.Node, mask: fx.Node) -> fx.Node | None:
    tensor = context.tensor(mask)
    if tensor is not None:
        zero, lowest = tensor == 0, tensor == torch.finfo(tensor.dtype).min
        hidden = (tensor == -math.inf) | (lowest & zero.any(-1, keepdim=True))
        known = bool((zero | hidden).all())
        return context.once(mask, lambda: context.buffer(node, zero)) if known else None
    if mask.target is aten.where.self:
        condition, chosen, other = mask.args
        numbers = context.number(chosen), context.number(other)
        if numbers == (0, -math.inf) and isinstance(condition, fx.Node):
            return condition
        if numbers == (-math.inf, 0) and isinstance(condition, fx.Node):
            return context.call(node, aten.logical_not.default, condition)
    return None


TABLE: tuple[tuple[str, Rule, tuple[Any, ...]], ...] = (
    ("attention recovered", attention, _PRODUCTS),
    ("scales joined to attention", scaled_operand, (aten.scaled_dot_product_attention.default,)),
    ("attention masks made boolean", boolean_mask, (aten.scaled_dot_product_attention.default,)),
)
