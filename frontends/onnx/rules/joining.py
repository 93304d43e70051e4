"""Rules for Add and Mul, which may belong to what computed their operands: a bias, the scale of a product, or the rows
of attention that see anything."""

from __future__ import annotations

import torch
from torch import fx

from ..call import Call
from ..registry import rule
from ..values import Known, Value
from .attention import attention_of_seen_rows
from .convolution import CONVOLUTIONS
from .dynamic_quantization import scaled_product
from .elementwise import commutative
from .linear import bias_on_grid

aten = torch.ops.aten


@rule("Add")
def add(op: Call) -> Value:
    """After a product with a constant matrix, a constant vector is its bias; after a convolution, one of channels."""
    for index in (0, 1):
        product, bias = op.input(index), op.input(1 - index)
        known = op.importer.known(bias)
        if known is None or not isinstance(product, fx.Node) or not op.only_reader(index):
            continue
        if product.target is aten.linear.default and len(product.args) == 2:
            x, weight = product.args
            if tuple(known.tensor.shape) == (weight.meta["val"].shape[0],):  # type: ignore[union-attr]  # a node
                bias = bias_on_grid(op, bias, x, weight)  # type: ignore[arg-type, assignment]  # nodes
                return op.call(aten.linear.default, x, weight, bias)
        if product.target in CONVOLUTIONS and product.args[2:3] in ((), (None,)):
            of_channels = _of_channels(op, known, product)
            if of_channels is not None:
                return op.call(product.target, *product.args[:2], of_channels, *product.args[3:])
    return commutative(op, aten.add.Tensor)


def _of_channels(op: Call, known: Known, product: fx.Node) -> Value | None:
    """A tensor with a number for each channel of images, as a vector; None for any other."""
    sizes = [op.size(product, 1), *[1] * (op.rank(product) - 2)]
    fits = list(known.tensor.shape) in (sizes, [1, *sizes]) and known.tensor.dtype is op.dtype(product)
    return op.call(aten.reshape.default, known, [-1]) if fits else None


@rule("Mul")
def mul(op: Call) -> Value:
    for rule_of_product in (scaled_product, attention_of_seen_rows):
        product = rule_of_product(op)
        if product is not None:
            return product
    return commutative(op, aten.mul.Tensor)
