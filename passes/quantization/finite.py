"""NaN and infinity, named with the node where they first appear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.errors import CalibrationError
from tersor.ir.program import Program

from ..compare import node_values
from .roles import WEIGHTS

aten = torch.ops.aten

_WEIGHTED = (*WEIGHTS, aten.batch_norm.default, aten.layer_norm.default, aten.rms_norm.default, aten.embedding.default)
"""Operators whose constants are weights and no masks."""


def first_unfinite(program: Program, inputs: list[Tensor]) -> tuple[fx.Node, str] | None:
    """The first node whose value holds NaN or infinity, and what it holds; None where none does.

    Minus infinity in what is no weight is how attention masks are written, and passes.
    """
    found: list[tuple[fx.Node, str]] = []

    def visit(node: fx.Node, value: Any) -> None:
        if not found and isinstance(value, Tensor) and (bad := _what_is_bad(node, value)):
            found.append((node, bad))

    node_values(program, inputs, visit)
    return found[0] if found else None


def refuse_unfinite(program: Program, inputs: list[Tensor], error: CalibrationError) -> CalibrationError:
    """The error about a value that is not finite, with the node where the first such value appears."""
    first = first_unfinite(program, inputs)
    if first is None:
        return error
    node, bad = first
    where = "a weight" if node.op == "get_attr" else "an input" if node.op == "placeholder" else "a value"
    return CalibrationError(f"{error.what}: {where} is not finite", node=node, found=bad, hint=_HINTS[where])


_HINTS = {
    "a weight": "the model itself holds it: look at how it was trained or loaded",
    "an input": "look at how this batch was prepared",
    "a value": "it first appears at this node, and all before it is finite",
}


def refuse_unfinite_weights(program: Program) -> None:
    """Raise CalibrationError where a weight of the program holds NaN or infinity, with the node that reads it."""
    for node in program.graph.find_nodes(op="get_attr"):
        tensor = program.tensor(str(node.target)).detach()
        # A sum is not finite where a value is not, and takes a fifth of the time; it may also overflow.
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            bad = _what_is_bad(node, program.tensor(str(node.target)))
            if bad and (isinstance(program.tensor(str(node.target)), nn.Parameter) or _is_weight(node)):
                raise CalibrationError("a weight is not finite", node=node, found=bad, hint=_HINTS["a weight"])


def _what_is_bad(node: fx.Node, value: Tensor) -> str:
    """What a value holds that it may not, in words; empty where nothing."""
    if not value.is_floating_point():
        return ""
    kinds = {"NaN": torch.isnan(value), "infinity": value == torch.inf}
    if node.op == "get_attr" and _is_weight(node):
        kinds["infinity"] = torch.isinf(value)
    counts = {kind: int(bad.sum()) for kind, bad in kinds.items()}
    listed = ", ".join(f"{kind} at {count}" for kind, count in counts.items() if count)
    return f"{listed} of {value.numel()} values" if listed else ""


def _is_weight(node: fx.Node) -> bool:
    return any(user.target in _WEIGHTED for user in node.users)
