"""Where the greatest or the least of some values stands: places, which can be given but not computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .steps import Place
from .views import CASTS

if TYPE_CHECKING:
    from .plan import Planner

aten = torch.ops.aten

PLACES = frozenset({aten.argmax.default, aten.argmin.default})

BYTES = {torch.int32: 4, torch.int64: 8}
"""The types that places may be given in."""

_IN_ORDER = frozenset(
    {
        aten.clone.default, aten.contiguous.default, aten.flatten.using_ints, aten.reshape.default,
        aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unflatten.int, aten.unsqueeze.default,
    }
)  # fmt: skip
"""Movements that leave values in their order."""


def places(program: Program) -> dict[fx.Node, fx.Node]:
    """Every value of places, with the operator that finds them: itself, reshaped, or in another type of integers."""
    found: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.target in PLACES:
            found[node] = node
        elif node.target in _IN_ORDER or (node.target in CASTS and node.meta[KEY].dtype in BYTES):
            source = node.args[0]
            if isinstance(source, fx.Node) and source in found:
                found[node] = found[source]
    return found


def misplaced(node: fx.Node, found: dict[fx.Node, fx.Node]) -> str | None:
    """What else is done with places than to give them; None where nothing is."""
    read = [source for source in node.all_input_nodes if source in found]
    if not read or node in found or node.op == "output":
        return None
    return f"it computes with %{found[read[0]].name}, whose places can only be an output"


def plan_place(planner: Planner, node: fx.Node) -> None:
    """A step for each output that the places are given as."""
    x, *rest = node.args
    assert isinstance(x, fx.Node)
    elements = planner.value(x)
    dim = rest[0] if rest else None
    rows = elements.reshape(-1) if dim is None else np.moveaxis(elements, int(dim), -1)  # type: ignore[arg-type]  # a number
    source = planner.read(np.ascontiguousarray(rows), None)
    length, found = rows.shape[-1] if rows.ndim else 1, places(planner.program)
    for index, output in enumerate(planner.program.outputs):
        if found.get(output) is node:
            size, least = BYTES[output.meta[KEY].dtype], node.target is aten.argmin.default
            planner.steps.append(Place(node.name, (source,), None, index, size, rows.size // length, length, least))
