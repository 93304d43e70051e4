"""Operators that multiply and sum: the dimensions summed over are one axis, those kept pass through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ...arguments import argument
from ..axes import Axis, product
from ..flow import Axes, CannotFollowError, Flow, Kind, Rule

aten = torch.ops.aten


def linear(flow: Flow, node: fx.Node) -> Axes:
    """linear(x [.., in], weight [out, in], bias [out])."""
    x, (*out, inputs) = flow.of(node.args[0]), flow.of(node.args[1])
    flow.same(x[-1], inputs)
    if (bias := argument(node, "bias")) is not None and out:
        flow.same(flow.of(bias)[0], out[0])
    return (*x[:-1], *out)


def _matrix_product(flow: Flow, left: Axes, right: Axes) -> Axes:
    """[.., m, k] by [.., k, n], either of them a vector."""
    if not left or not right:
        raise CannotFollowError("a matrix product with a number")
    rows = () if len(left) == 1 else (left[-2],)
    columns = () if len(right) == 1 else (right[-1],)
    flow.same(left[-1], right[-2] if len(right) > 1 else right[-1])
    return (*flow.broadcast([left[:-2], right[:-2]]), *rows, *columns)


def matmul(flow: Flow, node: fx.Node) -> Axes:
    """matmul, mm, bmm, mv, dot. A product of two computed values in batches is attention: the batches are heads."""
    left, right = flow.of(node.args[0]), flow.of(node.args[1])
    result = _matrix_product(flow, left, right)
    computed = all(isinstance(v, fx.Node) and v.op == "call_function" for v in node.args[:2])
    if computed and len(left) == len(right) == 4:
        flow.mark(result[1], Kind.HEADS)
        flow.mark(left[-1], Kind.HEAD_DIM)
    return result


def added_product(flow: Flow, node: fx.Node) -> Axes:
    """addmm, baddbmm, addmv: a product, and what it is added to."""
    found = _matrix_product(flow, flow.of(node.args[1]), flow.of(node.args[2]))
    return flow.broadcast([found, flow.of(node.args[0])])


def outer(flow: Flow, node: fx.Node) -> Axes:
    """outer(left [m], right [n])."""
    return (*flow.of(node.args[0]), *flow.of(node.args[1]))


# -- convolution -----------------------------------------------------------------------------------------------------


def convolution(flow: Flow, node: fx.Node) -> Axes:
    """conv1d to 3d: x [.., in, *space], weight [out, in / groups, *kernel].

    In a grouped convolution input channels are groups * inputs of a group, output channels groups * outputs of a group:
    whole groups go, or the same channel of every group.
    """
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    space = len(weight) - 2
    _space(flow, x[-space:], weight[2:])
    groups = _groups(flow, node, weight[0].size)
    flow.same(x[-space - 1], product([groups, weight[1]]))
    if groups.size > 1:
        flow.same(weight[0], product([groups, flow.fresh(weight[0].size // groups.size, "out")]))
    return _convolved(flow, node, x, weight[0], space)


def transposed_convolution(flow: Flow, node: fx.Node) -> Axes:
    """conv_transpose1d to 3d: x [.., in, *space], weight [in, out / groups, *kernel]."""
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    space = len(weight) - 2
    _space(flow, x[-space:], weight[2:])
    flow.same(x[-space - 1], weight[0])
    groups = _groups(flow, node, weight[0].size)
    if groups.size > 1:
        flow.same(weight[0], product([groups, flow.fresh(weight[0].size // groups.size, "in")]))
    return _convolved(flow, node, x, product([groups, weight[1]]), space)


def either_convolution(flow: Flow, node: fx.Node) -> Axes:
    """aten.convolution, whose argument says which way it goes."""
    return (transposed_convolution if argument(node, "transposed") else convolution)(flow, node)


def _groups(flow: Flow, node: fx.Node, channels: int) -> Axis:
    axis = flow.fresh(argument(node, "groups"), "groups")
    if axis.size > 1:
        flow.sized(node, "groups", axis)
    return axis


def _space(flow: Flow, positions: Sequence[Axis], kernel: Sequence[Axis]) -> None:
    flow.pin(positions, "spatial")
    flow.pin(kernel, "kernel")


def _convolved(flow: Flow, node: fx.Node, x: Axes, out: Axis, space: int) -> Axes:
    if (bias := argument(node, "bias")) is not None:
        flow.same(flow.of(bias)[0], out)
    positions = (flow.pinned(size, "spatial") for size in flow.shape(node)[-space:])
    return (*x[: -space - 1], out, *positions)


# -- attention -------------------------------------------------------------------------------------------------------


def attention(flow: Flow, node: fx.Node) -> Axes:
    """scaled_dot_product_attention(query [.., heads, L, E], key [.., heads, S, E], value [.., heads, S, Ev], mask).

    With enable_gqa, query heads are key heads * queries of one key. The default scale is 1/sqrt(E) of before the cut,
    so it is written out where E shrinks.
    """
    query, key, value = (flow.of(operand) for operand in node.args[:3])
    flow.same(key[-1], query[-1])
    flow.same(value[-2], key[-2])
    if argument(node, "enable_gqa") and query[-3].size != key[-3].size:
        shared = flow.fresh(query[-3].size // key[-3].size, "queries")
        flow.same(query[-3], product([key[-3], shared]))
        flow.same(value[-3], key[-3])
        batch = (*flow.broadcast([query[:-3], key[:-3], value[:-3]]), query[-3])
    else:
        batch = flow.broadcast([query[:-2], key[:-2], value[:-2]])
    if (mask := argument(node, "attn_mask")) is not None:
        flow.broadcast([(*batch, query[-2], key[-2]), flow.of(mask)])
    if len(batch) > 1:
        flow.mark(batch[-1], Kind.HEADS)
    flow.mark(query[-1], Kind.HEAD_DIM)
    flow.mark(value[-1], Kind.HEAD_DIM)
    flow.change(node, query[-1:], _scale_of(query[-1].size))
    return (*batch, query[-2], value[-1])


def _scale_of(width: int) -> Callable[[Program, fx.Node, Callable[[Axis], int]], None]:
    def action(program: Program, node: fx.Node, size: Callable[[Axis], int]) -> None:
        if argument(node, "scale") is None:
            node.update_kwarg("scale", 1 / math.sqrt(width))

    return action


# -- einsum ----------------------------------------------------------------------------------------------------------


def einsum(flow: Flow, node: fx.Node) -> Axes:
    """einsum(equation, operands): a letter is an axis; `...` stands for one letter a dimension, from the last."""
    equation, operands = str(node.args[0]).replace(" ", ""), [flow.of(operand) for operand in node.args[1]]  # type: ignore[union-attr]
    inputs, arrow, output = equation.partition("->")
    named: dict[str, Axis] = {}
    for term, axes in zip(inputs.split(","), operands, strict=True):
        for letter, axis in zip(_letters(term, len(axes)), axes, strict=True):
            if axis.size == 1:
                named.setdefault(letter, axis)
            elif letter in named and named[letter].size != 1:
                flow.same(named[letter], axis)
            else:
                named[letter] = axis
    if not arrow:
        plain = inputs.replace(",", "").replace("...", "")
        output = ("..." if "..." in inputs else "") + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))
    rank = node.meta[KEY].dim()
    return tuple(named[letter] for letter in _letters(output, rank))


def _letters(term: str, rank: int) -> list[str]:
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    return [*before, *(f".{place}" for place in range(hidden, 0, -1) if dots), *after]


_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)

TABLE: dict[Any, Rule] = {
    aten.linear.default: linear,
    **dict.fromkeys(_PRODUCTS, matmul),
    aten.addmm.default: added_product,
    aten.baddbmm.default: added_product,
    aten.addmv.default: added_product,
    aten.outer.default: outer,
    aten.einsum.default: einsum,
    aten.scaled_dot_product_attention.default: attention,
    **{
        overload: convolution
        for name in ("conv1d", "conv2d", "conv3d")
        for overload in (getattr(aten, name).default, getattr(aten, name).padding)
    },
    aten.conv_transpose1d.default: transposed_convolution,
    aten.conv_transpose2d.input: transposed_convolution,
    aten.conv_transpose3d.input: transposed_convolution,
    aten.convolution.default: either_convolution,
}
