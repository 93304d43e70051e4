"""The rules of Canonicalize that remove, merge and absorb. What they share is in rules.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tersor.ir.shapes import KEY, infer, same

from ..arguments import PADS, argument, padded_with, set_argument
from .rules import Context, Rule

aten = torch.ops.aten


def same_as_input(context: Context, node: fx.Node) -> fx.Node | None:
    """An operator that gives back its input when dtype and sizes stay."""
    (source, *_) = node.args
    return source if isinstance(source, fx.Node) and context.same_type(node, source) else None


def dropout(context: Context, node: fx.Node) -> fx.Node | None:
    """Dropout that does not train."""
    if argument(node, "p") == 0 or (argument(node, "train") is False and not context.keep_training):
        return same_as_input(context, node)
    return None


def detach(context: Context, node: fx.Node) -> fx.Node | None:
    """Detach, which stops gradients and nothing else."""
    return None if context.keep_training else same_as_input(context, node)


def neutral(number: float, *, either: bool = False) -> Rule:
    """An arithmetic operator whose second operand (or, with `either`, one of the two) is its neutral element."""

    def rule(context: Context, node: fx.Node) -> fx.Node | None:
        left, right = node.args[:2]
        commutes = either and not node.kwargs  # kwargs: the alpha of add
        for kept, other in ((left, right), (right, left))[: 2 if commutes else 1]:
            if isinstance(kept, fx.Node) and context.number(other) == number and context.same_type(node, kept):
                return kept
        return None

    return rule


def no_padding(context: Context, node: fx.Node) -> fx.Node | None:
    """A pad of nothing."""
    return None if any(argument(node, "pad")) else same_as_input(context, node)


def merge_reshape(context: Context, node: fx.Node) -> fx.Node | None:
    """A reshape of what only reshaped: of the original."""
    source: Any = node.args[0]
    if source.target not in KEEPS_ORDER:
        return None
    set_argument(node, "self", source.args[0])
    return node


def undone_reshape(context: Context, node: fx.Node) -> fx.Node | None:
    """Squeeze, unsqueeze and the like, each undoing the other."""
    source: Any = node.args[0]
    if source.target in KEEPS_ORDER and context.same_type(node, source.args[0]):
        original: fx.Node = source.args[0]
        return original
    return None


def merge_permute(context: Context, node: fx.Node) -> fx.Node | None:
    """Permutations in a row: one, or none where they cancel."""
    source: Any = node.args[0]
    order, inner = _permutation(node), _permutation(source)
    if order == list(range(len(order))):
        return source if isinstance(source, fx.Node) else None
    if inner is None:
        return None
    merged = [inner[axis] for axis in order]
    if merged == list(range(len(order))):
        original: fx.Node = source.args[0]
        return original
    if node.target is not aten.permute.default or source.target is not aten.permute.default:
        return None
    node.args = (source.args[0], merged)
    return node


def _permutation(node: fx.Node) -> Any:
    """The axis of the input that each axis of the result is; None for an operator that does not permute."""
    if node.target is aten.permute.default:
        rank = len(argument(node, "dims"))
        return [axis % rank for axis in argument(node, "dims")]
    if node.target is not aten.transpose.int:
        return None
    rank = node.meta[KEY].dim()
    order = list(range(rank))
    if rank:
        first, second = argument(node, "dim0") % rank, argument(node, "dim1") % rank
        order[first], order[second] = second, first
    return order


def pad_into_convolution(spatial: int) -> Rule:
    """Zeros around the spatial axes, as many at either end, before a convolution: its own padding."""

    def rule(context: Context, node: fx.Node) -> fx.Node | None:
        padding = _padding_with_zeros(node, spatial)
        if padding is None:
            return None
        return _absorb(node, padding)

    return rule


def padding_in_numbers(context: Context, node: fx.Node) -> fx.Node | None:
    """Padding by name: "valid" is none; "same" adds a zero at the end of an axis where their number is odd."""
    weight: Any = node.args[1]
    kernel, same_size = weight.meta[KEY].shape[2:], argument(node, "padding") == "same"
    steps = _each_axis(argument(node, "dilation"), len(kernel))
    zeros = [step * (size - 1) if same_size else 0 for step, size in zip(steps, kernel, strict=True)]
    if any(count % 2 for count in zeros):
        ends = [amount for count in reversed(zeros) for amount in (0, count % 2)]
        node.update_arg(0, context.call(node, aten.constant_pad_nd.default, node.args[0], ends))
    target: Any = node.target
    set_argument(node, "padding", [count // 2 for count in zeros])
    node.target = _WITH_NUMBERS[target]
    return node


def pad_into_pooling(spatial: int) -> Rule:
    """Zeros before an average that counts its padding; torch takes half a window of it at most."""

    def rule(context: Context, node: fx.Node) -> fx.Node | None:
        if not argument(node, "count_include_pad") or argument(node, "ceil_mode"):
            return None
        padding = _padding_with_zeros(node, spatial)
        kernel = _each_axis(argument(node, "kernel_size"), spatial)
        if padding is None or any(2 * zeros > window for zeros, window in zip(padding, kernel, strict=True)):
            return None
        return _absorb(node, padding)

    return rule


def _absorb(node: fx.Node, padding: list[int]) -> fx.Node:
    pad: Any = node.args[0]
    set_argument(node, "padding", padding)
    node.update_arg(0, pad.args[0])
    return node


def _padding_with_zeros(node: fx.Node, spatial: int) -> list[int] | None:
    """The padding of a call together with the zeros that its input was padded with; None where they do not join."""
    source: Any = node.args[0]
    padding = argument(node, "padding")
    zeros = _zeros_around(source, spatial)
    if zeros is None or node.meta[KEY].dim() != spatial + 2:
        return None
    own = _each_axis(padding, spatial)
    return [a + b for a, b in zip(own, zeros, strict=True)]


def _each_axis(value: Any, spatial: int) -> list[int]:
    """`1` and `[1]` mean the same for every axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * (spatial // len(values))


def _zeros_around(node: fx.Node, spatial: int) -> list[int] | None:
    """How many zeros a pad adds at both ends of each spatial axis, first axis first; None for any other call."""
    if padded_with(node) != 0:
        return None
    amounts = argument(node, "pad")
    if not all(type(n) is int and n >= 0 for n in amounts):
        return None
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    if any(low != high for low, high in pairs) or any(low for low, _ in pairs[spatial:]):
        return None
    zeros = [low for low, _ in pairs[:spatial]]
    return (zeros + [0] * (spatial - len(zeros)))[::-1]


def mask_of_everything(context: Context, node: fx.Node) -> fx.Node | None:
    """An attention mask that hides nothing."""
    if not _hides_nothing(context, argument(node, "attn_mask")):
        return None
    given = node.args, node.kwargs
    set_argument(node, "attn_mask", None)
    if node.args[3:] == (None,):
        node.args = node.args[:3]
    if not same(context.program, node.meta[KEY], infer(context.program, node)):
        node.args, node.kwargs = given
        return None
    return node


def _hides_nothing(context: Context, mask: Any) -> bool:
    """Whether a mask is true, or zero, everywhere: a constant, an expanded one, or what is chosen by one."""
    while isinstance(mask, fx.Node) and mask.target is aten.expand.default:
        mask = mask.args[0]
    known = context.tensor(mask)
    if known is not None:
        return bool(known.all() if known.dtype is torch.bool else (known == 0).all())
    if isinstance(mask, fx.Node) and mask.target in (aten.where.self, aten.where.ScalarOther):
        return context.number(mask.args[1]) == 0 and _hides_nothing(context, mask.args[0])
    return False


KEEPS_ORDER = frozenset(
    {aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default}
    | {aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
)
"""Operators that change sizes and leave the order of the values."""

_WITH_NUMBERS = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}

_COPIES = (aten.alias.default, aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default)
_CASTS = (aten._to_copy.default, aten.type_as.default, aten.to.dtype)
_VIEWS = (aten.expand.default, aten.slice.Tensor, aten.repeat.default, *KEEPS_ORDER)
_NOTHING = "operations without effect removed"

TABLE: tuple[tuple[str, Rule, tuple[Any, ...]], ...] = (
    ("copies removed", same_as_input, _COPIES),
    ("casts removed", same_as_input, _CASTS),
    ("views of everything removed", same_as_input, _VIEWS),
    ("dropouts removed", dropout, (aten.dropout.default, aten.feature_dropout.default)),
    ("detaches removed", detach, (aten.detach.default,)),
    (_NOTHING, neutral(0, either=True), (aten.add.Tensor,)),
    (_NOTHING, neutral(1, either=True), (aten.mul.Tensor,)),
    (_NOTHING, neutral(0), (aten.sub.Tensor,)),
    (_NOTHING, neutral(1), (aten.div.Tensor, aten.pow.Tensor_Scalar)),
    ("reshapes merged", undone_reshape, tuple(KEEPS_ORDER)),
    ("reshapes merged", merge_reshape, (aten.reshape.default,)),
    ("permutations merged", merge_permute, (aten.permute.default, aten.transpose.int)),
    ("pads of nothing removed", no_padding, tuple(PADS)),
    ("paddings in numbers", padding_in_numbers, tuple(_WITH_NUMBERS)),
    ("pads folded", pad_into_convolution(1), (aten.conv1d.default,)),
    ("pads folded", pad_into_convolution(2), (aten.conv2d.default,)),
    ("pads folded", pad_into_convolution(3), (aten.conv3d.default,)),
    ("pads folded", pad_into_pooling(1), (aten.avg_pool1d.default,)),
    ("pads folded", pad_into_pooling(2), (aten.avg_pool2d.default,)),
    ("pads folded", pad_into_pooling(3), (aten.avg_pool3d.default,)),
    ("masks of everything removed", mask_of_everything, (aten.scaled_dot_product_attention.default,)),
)
