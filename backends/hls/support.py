"""What has a place in a dataflow graph, and the reasons for the rest."""

from __future__ import annotations

import torch
from torch import fx

from tersor.ir.integer_operators import DEQUANTIZE, QUANTIZE
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.quantization.placement import operator_of

from ..base import Unsupported
from .build import Builder
from .rules import RULES

_EVERYTHING = "Quantize(..., coverage=Coverage.EVERYTHING)"
_OTHERWISE = "use another operator there, or lower to onnxruntime, which runs it in float"


def unsupported_nodes(program: Program) -> list[Unsupported]:
    """Every node that the target does not take, in graph order: edges, float islands, and what the builder refuses."""
    islands = {island.node: island.reason for island in float_islands(program)}
    edges = {node: found for node in program.graph.nodes if (found := _edge(program, node)) is not None}
    refusals = Builder(program, RULES).build().refusals
    listed = []
    for node in program.graph.nodes:
        row: tuple[str, str, str | None]
        if node in islands:
            row = operator_of(node), islands[node], _instead(islands[node])
        elif node in edges:
            row = node.op if node.op != "call_function" else operator_of(node), *edges[node]
        elif node in refusals:
            row = operator_of(node), refusals[node].reason, refusals[node].hint
        else:
            continue
        listed.append(Unsupported(node.name, *row, Origin.of(node)))
    return listed


def _instead(reason: str) -> str:
    """What to do about a float island: no coverage gives an operator an integer form that it does not have."""
    return _OTHERWISE if "no integer form" in reason else _EVERYTHING


def _edge(program: Program, node: fx.Node) -> tuple[str, str] | None:
    """Why an input or output has no place, and what to do about it."""
    if node.op == "placeholder":
        value = node.meta[KEY]
        if value.dtype is not torch.float32:
            return f"inputs are float32, this is {str(value.dtype).removeprefix('torch.')}", "give floats to the model"
        if any(user.target is not QUANTIZE for user in node.users):
            return "an input is used that is on no integer grid", _EVERYTHING
        return None if node.users else ("an input is not used", "take it out of the model's forward")
    if node.op != "output":
        return None
    for output in program.outputs:
        if output.target is not DEQUANTIZE:
            return f"output %{output.name} is no dequantized value", _EVERYTHING
        if output.args[0].target is QUANTIZE:  # type: ignore[union-attr]  # of a node, by its schema
            return f"output %{output.name} is an input: there is nothing to compute", "give only what is computed"
    return None
