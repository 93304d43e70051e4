"""What the library can compute, and the reasons for the rest."""

from __future__ import annotations

import torch
from torch import fx

from tersor.ir.integer_operators import DEQUANTIZE, INT_LINEAR, QUANTIZE, REQUANTIZE
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.passes.arguments import PADS, padded_with
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.quantization.placement import operator_of

from ..base import Unsupported
from .numbers import BYTES, misused
from .numbers import sources as numbers_of
from .places import BYTES as PLACE_BYTES
from .places import misplaced, places
from .rules import ACCUMULATORS, RULES
from .views import CASTS, CHOICES, MOVEMENTS

_ALIGNED = "give Quantize(..., coverage=Coverage.EVERYTHING)"
_HINTS = dict.fromkeys(
    ("lstm", "gru", "rnn_tanh", "rnn_relu"),
    "1-d convolutions or attention, or run the recurrent layer in float, outside of the program",
)
_HINTS |= dict.fromkeys(("max", "min", "topk", "sort"), "amax(dim) for the value, argmax(dim) for its place")
_OTHERWISE = "an operator that docs/arithmetic.md lists, or compute it outside of the program"


def unsupported_nodes(program: Program) -> list[Unsupported]:
    """Every node that the library cannot compute, in graph order."""
    islands = {island.node: island.reason for island in float_islands(program)}
    numbers, given = numbers_of(program), places(program)
    found = []
    for node in program.graph.nodes:
        reason = misplaced(node, given) or islands.get(node) or misused(node, numbers) or _reason(program, node)
        if reason is not None:
            hint = _hint(operator_of(node), reason) if islands.get(node) == reason else None
            found.append(Unsupported(node.name, operator_of(node), reason, hint, Origin.of(node)))
    return found


def _hint(operator: str, reason: str) -> str:
    if "on no integer grid" in reason or "wanted in float" in reason:
        return _ALIGNED
    return _HINTS.get(operator, _OTHERWISE)


def _reason(program: Program, node: fx.Node) -> str | None:
    if node.op == "placeholder":
        return _input_reason(node)
    if node.op == "output":
        return _output_reason(program)
    if node.op != "call_function":
        return None
    known = node.target in RULES or node.target in ACCUMULATORS or node.target in MOVEMENTS or node.target in CASTS
    if not known:
        return f"{operator_of(node)} is not in the library"
    if node.target in PADS and padded_with(node) is None:
        return "pads that repeat or mirror values are not in the library"
    if node.target in CHOICES and not _chosen_by_constants(program, node):
        return "which values it takes is computed while the model runs"
    if isinstance(node.meta.get(KEY), torch.SymInt):
        return "a size is computed while the model runs"
    if operator_of(node) == "int_conv" and node.meta[KEY].dim() == _VOLUME:
        return "convolutions over three dimensions are not in the library"
    return _accumulator_reason(node) if node.target in ACCUMULATORS else None


def _chosen_by_constants(program: Program, node: fx.Node) -> bool:
    given = node.args[CHOICES[node.target]]  # type: ignore[index]  # one of them
    chosen = given if isinstance(given, list | tuple) else [given]
    return all(program.constant(tensor) is not None for tensor in chosen if tensor is not None)


_VOLUME = 5
"""Batch, channels, depth, height, width."""


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
    if value.dtype in BYTES:
        return None
    if value.dtype is not torch.float32:
        return f"inputs are float32, int32 or int64, this is {str(value.dtype).removeprefix('torch.')}"
    if any(user.target is not QUANTIZE for user in node.users):
        return "an input is used that is on no integer grid"
    return None


def _output_reason(program: Program) -> str | None:
    found = places(program)
    for output in program.outputs:
        if output in found and output.meta[KEY].dtype in PLACE_BYTES:
            continue
        if output.target is not DEQUANTIZE:
            return f"output %{output.name} is no dequantized value"
    return None
