"""What the names of an ONNX graph stand for while it is imported.

Most are nodes of the program. The rest is known before the program runs, and only enters the graph where an operator
needs it as a tensor: constants, sizes computed from the shapes of inputs, and integers between QuantizeLinear and
DequantizeLinear. So shape arithmetic leaves no trace, and Shape -> Gather -> Concat -> Reshape becomes one reshape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Size: TypeAlias = "int | fx.Node"
"""A size: a number, or a node that gives one when the program runs."""


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor that is known at import: an initializer, a Constant, or what was computed from those.

    name: what it is called once it is a tensor of the program. trainable: it becomes a parameter. onnx_type: the
    element type in the file, where torch stores it wider (int4). transposed: the tensor of which it is the transpose,
    so that a weight that is used both ways (tied embeddings) stays one tensor. bias_scale: the scale that it had in the
    file, where it stood there as int32. picked: operator and arguments of what repeats or looks up items of a
    parameter, so that it is the parameter that enters the graph and is trained, and not a copy of its items.
    """

    tensor: Tensor
    name: str = ""
    trainable: bool = False
    onnx_type: int | None = None
    transposed: Known | None = None
    bias_scale: Tensor | None = None
    picked: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None


@dataclass(frozen=True, eq=False)
class Sizes:
    """An integer tensor of that shape whose items are numbers and nodes that give sizes, in row-major order."""

    items: tuple[Size, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True, eq=False)
class Quantized:
    """What QuantizeLinear gives: `source` divided by the scale, rounded and clamped to a type's integers.

    bounds: the least and greatest of those integers, where a Clip left fewer than the type has. exact: `source` has
    only values that the grid has, as what moves values from this grid gives.
    """

    source: fx.Node
    scale: Known
    zero_point: Known
    axis: int | None
    onnx_type: int
    bounds: tuple[int, int] | None = None
    exact: bool = False


Value: TypeAlias = fx.Node | Known | Sizes | Quantized | tuple["Value", ...]
"""A tuple is an ONNX sequence whose length is known."""
