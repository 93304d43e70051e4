"""What is float in a program of the integer stage, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tersor.ir.integer_operators import DEQUANTIZE, QUANTIZE
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..quantization.placement import operator_of
from ..quantization.roles import PRODUCTS, Role, role_of

_REASONS: dict[object, str] = {
    FAKE_QUANTIZE: "no integer operator takes its grid: per channel, or wider than int8",
    FAKE_QUANTIZE_BIAS: "it is the bias of a float operator",
}


@dataclass(frozen=True)
class FloatIsland:
    """A node that computes with floats in a program of the integer stage."""

    node: fx.Node
    reason: str


def float_islands(program: Program) -> list[FloatIsland]:
    """Every node that computes floats, in graph order. Conversions to and from integers are not among them."""
    return [
        FloatIsland(node, _reason(program, node))
        for node in program.graph.nodes
        if node.op == "call_function" and node.target not in (DEQUANTIZE, QUANTIZE) and _float_type(node)
    ]


def _float_type(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get(KEY)
    values = value if isinstance(value, list | tuple) else [value]
    return next((item.dtype for item in values if isinstance(item, Tensor) and item.is_floating_point()), None)


def _reason(program: Program, node: fx.Node) -> str:
    from .rules import RULES

    if node.target in _REASONS:
        return _REASONS[node.target]
    dtype = _float_type(node)
    if dtype is not torch.float32:
        return f"it computes {str(dtype).removeprefix('torch.')}, and integers stand for float32"
    has_form = node.target in RULES.grids or node.target in RULES.values or role_of(program, node) is Role.LOOKUP
    if not has_form:
        return f"{operator_of(node)} has no integer form"
    loose = [source for source in node.all_input_nodes if source.op != "get_attr" and source.target is not DEQUANTIZE]
    if loose:
        return f"its input %{loose[0].name} is on no integer grid: Quantize(..., coverage=Coverage.EVERYTHING)"
    if node.target in PRODUCTS and type(node.all_input_nodes[0].meta[KEY].shape[-1]) is not int:
        return "it sums over a dimension of dynamic size, so its accumulator has no bound"
    if not all(user.target is QUANTIZE for user in node.users):
        return "its result is wanted in float"
    return f"this form of {operator_of(node)} has no integer form"
