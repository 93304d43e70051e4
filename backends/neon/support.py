"""What the library can compute, and the reasons for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tersor.ir.integer_operators import DEQUANTIZE, INT_LINEAR, QUANTIZE, REQUANTIZE
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.quantization.placement import operator_of

from ..base import Unsupported
from .rules import ACCUMULATORS, RULES
from .views import MOVEMENTS

_ALIGNED = "give Quantize(..., coverage=Coverage.EVERYTHING)"


def unsupported_nodes(program: Program) -> list[Unsupported]:
    """Every node that the library cannot compute, in graph order."""
    islands = {island.node: island.reason for island in float_islands(program)}
    found = []
    for node in program.graph.nodes:
        reason = islands.get(node) or _reason(program, node)
        if reason is not None:
            hint = _ALIGNED if node in islands else None
            found.append(Unsupported(node.name, operator_of(node), reason, hint, Origin.of(node)))
    return found


def _reason(program: Program, node: fx.Node) -> str | None:
    if node.op == "placeholder":
        return _input_reason(node)
    if node.op == "output":
        return _output_reason(program)
    if node.op != "call_function":
        return None
    known = node.target in RULES or node.target in ACCUMULATORS or node.target in MOVEMENTS
    if not known:
        return f"{operator_of(node)} is not in the library"
    if isinstance(node.meta.get(KEY), torch.SymInt):
        return "a size is computed while the model runs"
    if _leading(node) != 1 and node.target in ACCUMULATORS and node.meta[KEY].dim() > 2 and _is_image(node):
        return f"images come one at a time, not {_leading(node)}: trace with a batch of 1, or a dynamic one"
    if operator_of(node) == "int_conv" and node.meta[KEY].dim() == _VOLUME:
        return "convolutions over three dimensions are not in the library"
    return _accumulator_reason(node) if node.target in ACCUMULATORS else None


_VOLUME = 5
"""Batch, channels, depth, height, width."""


def _is_image(node: fx.Node) -> bool:
    return operator_of(node) in ("int_conv", "int_sum_pool")


def _leading(node: fx.Node) -> int:
    value = node.meta.get(KEY)
    return int(value.shape[0]) if isinstance(value, Tensor) and value.dim() else 1


def _accumulator_reason(node: fx.Node) -> str | None:
    """Accumulators go onto a grid; those of a linear layer may also be an output."""
    for user in node.users:
        if user.target is DEQUANTIZE and node.target is not INT_LINEAR:
            return "its accumulator is wanted in float"
        if user.target not in (REQUANTIZE, DEQUANTIZE):
            return f"its accumulator is read by {operator_of(user)}"
    return None


def _input_reason(node: fx.Node) -> str | None:
    value = node.meta[KEY]
    if value.dtype is not torch.float32:
        return f"inputs are float32, this is {str(value.dtype).removeprefix('torch.')}"
    if any(user.target is not QUANTIZE for user in node.users):
        return "an input is used that is on no integer grid"
    return None


def _output_reason(program: Program) -> str | None:
    for output in program.outputs:
        if output.target is not DEQUANTIZE:
            return f"output %{output.name} is no dequantized value"
    return None
