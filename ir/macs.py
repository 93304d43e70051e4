"""How many multiply-accumulates each operator takes: a table of rules on shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .integer_operators import INT_CONV, INT_LINEAR, INT_MATMUL
from .shapes import KEY

aten = torch.ops.aten
Shape = tuple[int, ...]
Sizes = Callable[[Tensor], Shape]
Rule = Callable[[fx.Node, Sizes], int]


def multiply_accumulates(node: fx.Node, sizes: Sizes) -> int:
    """The multiply-accumulates of one node, 0 for an operator without a rule; `sizes` gives a tensor's as numbers."""
    rule = RULES.get(node.target)
    return 0 if rule is None else rule(node, sizes)


def _shape(value: Any, sizes: Sizes) -> Shape:
    return sizes(value.meta[KEY])


def _convolution(node: fx.Node, sizes: Sizes) -> int:
    """Each output value sums over a filter: [out, in / groups, *kernel]."""
    return math.prod(_shape(node, sizes)) * math.prod(_shape(node.args[1], sizes)[1:])


def _transposed_convolution(node: fx.Node, sizes: Sizes) -> int:
    """Each input value is spread over a filter: [in, out / groups, *kernel]."""
    return math.prod(_shape(node.args[0], sizes)) * math.prod(_shape(node.args[1], sizes)[1:])


def _either_convolution(node: fx.Node, sizes: Sizes) -> int:
    return (_transposed_convolution if node.args[6] else _convolution)(node, sizes)


def _product(first: int) -> Rule:
    """A matrix product whose left operand is that argument; its last dimension is the one summed over."""
    return lambda node, sizes: math.prod(_shape(node, sizes)) * _shape(node.args[first], sizes)[-1]


def _sum_of_products(node: fx.Node, sizes: Sizes) -> int:
    """addbmm sums over the batch as well."""
    return math.prod(_shape(node.args[1], sizes)) * _shape(node.args[2], sizes)[-1]


def _outer(node: fx.Node, sizes: Sizes) -> int:
    return math.prod(_shape(node, sizes))


def _attention(node: fx.Node, sizes: Sizes) -> int:
    """Both products: query [..., L, E] with key [..., S, E], and weights with value [..., S, Ev]; masks save none."""
    query, value = _shape(node.args[0], sizes), _shape(node.args[2], sizes)
    *batch, length, width = _shape(node, sizes)
    return math.prod(batch) * length * value[-2] * (query[-1] + width)


def _recurrent(weights: int) -> Rule:
    """Each weight matrix of each layer and direction once for each step of each sequence; `weights`: its argument."""

    def rule(node: fx.Node, sizes: Sizes) -> int:
        matrices: Any = node.args[weights]
        shapes = [_shape(weight, sizes) for weight in matrices]
        steps = math.prod(_shape(node.args[0], sizes)[:-1])
        return steps * sum(math.prod(shape) for shape in shapes if len(shape) == 2)

    return rule


def _recurrent_cell(node: fx.Node, sizes: Sizes) -> int:
    """One step: weights of the input and of the state."""
    batch = math.prod(_shape(node.args[0], sizes)[:-1])
    return batch * sum(math.prod(_shape(weight, sizes)) for weight in node.args[2:4])


def _einsum(node: fx.Node, sizes: Sizes) -> int:
    """Operands are contracted from left to right; each step costs the product of all the sizes that it involves."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    assert isinstance(operands, Sequence)
    terms, result = _labels(equation, [_shape(operand, sizes) for operand in operands])
    left, total = terms[0], 0
    for index, right in enumerate(terms[1:], 2):
        involved = {label: max(left.get(label, 1), right.get(label, 1)) for label in (*left, *right)}
        total += math.prod(involved.values())
        needed = set(itertools.chain(result, *terms[index:]))
        left = {label: size for label, size in involved.items() if label in needed}
    return total


def _labels(equation: str, shapes: Sequence[Shape]) -> tuple[list[Mapping[str, int]], set[str]]:
    """Each operand's sizes by label, and the labels of the result; `...` stands for one label a dimension."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms: list[Mapping[str, int]] = []
    for text, shape in zip(inputs.split(","), shapes, strict=True):
        before, dots, after = text.partition("...")
        hidden = len(shape) - len(before) - len(after)
        names = [*before, *(f".{index}" for index in range(hidden, 0, -1)), *after] if dots else list(text)
        terms.append(dict(zip(names, shape, strict=True)))
    every = set(itertools.chain(*terms))
    if arrow:
        return terms, {label for label in every if label in output or label.startswith(".")}
    letters = inputs.replace(",", "").replace("...", "")
    return terms, {label for label in every if letters.count(label) <= 1}


RULES: dict[Any, Rule] = {
    **{
        overload: _convolution
        for name in ("conv1d", "conv2d", "conv3d")
        for overload in (getattr(aten, name).default, getattr(aten, name).padding)
    },
    aten.conv_transpose1d.default: _transposed_convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.conv_transpose3d.input: _transposed_convolution,
    aten.convolution.default: _either_convolution,
    aten.linear.default: _product(0),
    aten.matmul.default: _product(0),
    aten.mm.default: _product(0),
    aten.bmm.default: _product(0),
    aten.mv.default: _product(0),
    aten.dot.default: _product(0),
    aten.inner.default: _product(0),
    aten.addmm.default: _product(1),
    aten.baddbmm.default: _product(1),
    aten.addmv.default: _product(1),
    aten.addbmm.default: _sum_of_products,
    aten.outer.default: _outer,
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
    **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _recurrent(2)),
    **dict.fromkeys((aten.lstm.data, aten.gru.data, aten.rnn_tanh.data, aten.rnn_relu.data), _recurrent(3)),
    aten.lstm_cell.default: _recurrent_cell,
    aten.gru_cell.default: _recurrent_cell,
    aten.rnn_tanh_cell.default: _recurrent_cell,
    aten.rnn_relu_cell.default: _recurrent_cell,
    INT_CONV: _convolution,
    INT_LINEAR: _product(0),
    INT_MATMUL: _product(0),
}
"""Operators that multiply and accumulate. All others count as none."""
