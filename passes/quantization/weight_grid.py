"""Weights on integer grids, whichever operator puts them there: as matrices with one scale and zero point a value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, over_blocks
from tersor.ir.operators import FAKE_QUANTIZE, along
from tersor.ir.program import Program

from ..arguments import argument, spatial

aten = torch.ops.aten

PRODUCTS = frozenset({aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})
"""Operators whose second argument is a weight with output channels first."""


@dataclass(frozen=True)
class WeightGrid:
    """A weight as float32[rows, columns], rows being output channels, with the grid of each of its values.

    scale, zero_point: float32 and int32, of the weight's shape as a matrix or broadcast to it.
    zeros: bool[rows, columns], the zeros that the program promises; None where it promises none. They stay.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    zeros: Tensor | None = None

    def rounded(self, values: Tensor, columns: slice | int = slice(None)) -> Tensor:
        """Values of some columns on their grids."""
        scale, zero = self.scale[:, columns], self.zero_point[:, columns]
        found = (torch.round(values / scale).add_(zero).clamp_(self.quant_min, self.quant_max) - zero) * scale
        return found if self.zeros is None else found.masked_fill_(self.zeros[:, columns], 0.0)

    def by_column(self, order: Tensor) -> WeightGrid:
        """The same with its columns in another order."""
        return replace(
            self,
            weight=self.weight[:, order],
            scale=self.scale[:, order],
            zero_point=self.zero_point[:, order],
            zeros=None if self.zeros is None else self.zeros[:, order],
        )

    @classmethod
    def of(cls, program: Program, quantizer: fx.Node) -> WeightGrid:
        """The grid that a fake-quantize node gives its weight."""
        weight, scale, zero = (_tensor(program, argument).detach() for argument in quantizer.args[:3])
        if quantizer.target is FAKE_QUANTIZE_BLOCKS:
            axis, block = int(quantizer.args[3]), int(quantizer.args[4])  # type: ignore[arg-type]  # by its schema
            scale, zero = (over_blocks(part, axis, block, weight.shape[axis]) for part in (scale, zero))
        else:
            axis = quantizer.args[3]  # type: ignore[assignment]  # an int or None
            scale, zero = (along(part, axis, weight.dim()).expand_as(weight) for part in (scale, zero))
        low, high = (int(bound) for bound in quantizer.args[-2:])  # type: ignore[arg-type]  # by its schema
        rows = weight.shape[0]
        promised = str(quantizer.args[0].target) in program.sparsity  # type: ignore[union-attr]  # a constant
        return cls(
            weight.float().reshape(rows, -1),
            scale.float().reshape(rows, -1),
            zero.to(torch.int32).reshape(rows, -1),
            low,
            high,
            weight.reshape(rows, -1) == 0 if promised else None,
        )


@dataclass(frozen=True)
class QuantizedLayer:
    """A linear or convolution, and the fake-quantize of its weight, which nothing else reads."""

    node: fx.Node
    quantizer: fx.Node

    @property
    def weight(self) -> str:
        """The name of the weight."""
        return str(self.quantizer.args[0].target)  # type: ignore[union-attr]  # a constant


def quantized_layers(program: Program) -> Iterator[QuantizedLayer]:
    """The linears and convolutions whose weight has a grid and no other reader, in graph order."""
    uses: dict[int, int] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        key = id(program.tensor(str(node.target)))
        uses[key] = uses.get(key, 0) + len(node.users)
    for node in program.graph.nodes:
        quantizer = node.args[1] if node.target in PRODUCTS else None
        if not isinstance(quantizer, fx.Node) or quantizer.target not in (FAKE_QUANTIZE, FAKE_QUANTIZE_BLOCKS):
            continue
        weight = program.constant(quantizer.args[0])
        if weight is not None and uses[id(weight)] == 1 and len(quantizer.users) == 1:
            yield QuantizedLayer(node, quantizer)


def input_rows(layer: fx.Node, value: Tensor) -> Tensor | None:
    """What each output value of a layer is the product of a weight row with: float[rows, columns of the weight matrix].

    None for convolutions in groups, whose rows differ by group.
    """
    if layer.target is aten.linear.default:
        return value.reshape(-1, value.shape[-1])
    if int(argument(layer, "groups")) != 1:
        return None
    sizes = list(layer.args[1].meta["val"].shape[2:])  # type: ignore[union-attr]  # a node
    rank = len(sizes)
    stride, padding, dilation = (spatial(layer, name, rank) for name in ("stride", "padding", "dilation"))
    windows = torch.nn.functional.pad(value.float(), [zeros for side in padding[::-1] for zeros in (side, side)])
    for dim, size in enumerate(sizes):
        windows = windows.unfold(dim + 2, (size - 1) * dilation[dim] + 1, stride[dim])[..., :: dilation[dim]]
    order = [0, *range(2, rank + 2), 1, *range(rank + 2, 2 * rank + 2)]
    return windows.permute(order).reshape(-1, value.shape[1] * math.prod(sizes))


def _tensor(program: Program, argument: object) -> Tensor:
    tensor = program.constant(argument)
    assert tensor is not None  # the verifier holds that a weight's grid is made of tensors of the program
    return tensor
