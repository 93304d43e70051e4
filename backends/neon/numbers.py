"""Numbers that are given when the model runs, as tokens are, and the rows of tables that they choose.

A value of such numbers is known by where each of them stands in its input, counted row-major; a constant number n among
them, as a padding is, stands as -1 - n.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .plan import Planner
from .steps import Gather, Walk
from .views import CASTS, MOVEMENTS, filled_with

aten = torch.ops.aten

EMBEDDING = aten.embedding.default
BYTES = {torch.int32: 4, torch.int64: 8}
"""The types that inputs of numbers may have."""


def sources(program: Program) -> dict[fx.Node, fx.Node]:
    """Every value of such numbers, with the input that it is of."""
    found = {node: node for node in program.placeholders if _type(node) in BYTES}
    for node in program.graph.nodes:
        if node.op == "call_function" and _moves(node):
            inputs = {found[source] for source in node.all_input_nodes if source in found}
            if len(inputs) == 1 and all(source in found for source in node.all_input_nodes):
                (found[node],) = inputs
    return found


def misused(node: fx.Node, found: dict[fx.Node, fx.Node]) -> str | None:
    """What a node does with such numbers beside moving them and choosing rows; None where it does nothing else."""
    read = [source for source in node.all_input_nodes if source in found]
    if not read or node in found or (node.target is EMBEDDING and node.args[0] not in found):
        return None
    return f"it computes with %{read[0].name}, whose numbers can only choose rows of a table"


def plan_embedding(planner: Planner, node: fx.Node) -> None:
    """Rows copied from the table; of numbers that are constants nothing is left to do."""
    table_node, numbers = node.args[:2]
    assert isinstance(table_node, fx.Node)
    assert isinstance(numbers, fx.Node)
    known, table = planner.constant(numbers), planner.constant(table_node)
    assert table is not None
    if known is not None:
        planner.values[node] = planner.value(table_node)[known]
        return
    source = sources(planner.program)[numbers]
    buffer = planner.result(node, None)
    elements = planner.value(numbers).reshape(-1)
    index = planner.program.placeholders.index(source)
    size = BYTES[_type(source)]  # type: ignore[index]  # sources: one of them
    planner.steps.append(Gather(node.name, (), Walk.whole(buffer), index, size, positions(elements), table))


def positions(elements: NDArray[np.int64]) -> NDArray[np.int32]:
    """Where each number stands, as the library reads it."""
    return np.where(elements < 0, -1 - filled_with(elements), elements).astype(np.int32)


def _moves(node: fx.Node) -> bool:
    return node.target in MOVEMENTS or (node.target in CASTS and _type(node) in BYTES)


def _type(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get(KEY)
    return value.dtype if isinstance(value, torch.Tensor) else None
