"""Grids narrowed to the values that can occur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.accumulators import Range, accumulator_range, value_range
from tersor.ir.integer_operators import INT_ADD, INT_LOOKUP, REQUANTIZE, int_add, requantize
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, on_the_cpu

_TABLE_START = -128


@dataclass(frozen=True)
class TightenGrids(Pass):
    """Narrow the clamp of every operator to what its inputs and its weights let it reach.

        %q = requantize(%acc, @m, 0, -128, 127)    ->    %q = requantize(%acc, @m, 0, 0, 90)

    The bounds are proven from the constant weights, so no value changes; but a range of 91 values takes 7 bits where
    256 take 8, and what reads it has a narrower accumulator. Entries of a table that are never read become the nearest
    ones that are. Runs once over the graph, in order, so that what is found at one operator serves the next.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.INTEGER})

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Narrow in graph order."""
        narrowed = [node.name for node in list(program.graph.nodes) if self._narrow(program, node)]
        return PassResult(program, bool(narrowed), (f"grids narrowed: {len(narrowed)}",))

    def _narrow(self, program: Program, node: fx.Node) -> bool:
        if node.target is REQUANTIZE:
            return _replace(node, 3, _requantized(program, node))
        if node.target is INT_ADD:
            return _replace(node, 8, _added(program, node))
        return node.target is INT_LOOKUP and _trimmed(program, node)


def _replace(node: fx.Node, place: int, found: tuple[int, int] | None) -> bool:
    """Set the clamp, whose two bounds are arguments from `place` on."""
    if found is None or found == node.args[place : place + 2]:
        return False
    for index, bound in enumerate(found):
        node.update_arg(place + index, bound)
    return True


def _requantized(program: Program, node: fx.Node) -> tuple[int, int] | None:
    acc, multiplier = node.args[0], program.constant(node.args[1])
    assert isinstance(acc, fx.Node)
    assert multiplier is not None
    try:
        reach = accumulator_range(program, acc)
    except ValueError:
        return None
    return None if reach is None else _ends(reach, multiplier.detach(), *node.args[2:])


def _ends(reach: Range, multiplier: Tensor, zero_point: Any, low: Any, high: Any) -> tuple[int, int]:
    """The extremes of a requantization: it is monotone, so those of its accumulator decide."""
    factors = multiplier.reshape(-1)
    if reach.low.numel() == factors.numel():
        ends = [requantize(end.reshape(-1), factors, zero_point, low, high) for end in (reach.low, reach.high)]
    else:  # every multiplier may meet every accumulator
        widest = torch.stack([reach.low.min(), reach.high.max()]).reshape(2, 1)
        ends = list(requantize(widest, factors.reshape(1, -1), zero_point, low, high))
    return int(ends[0].min()), int(ends[1].max())


def _added(program: Program, node: fx.Node) -> tuple[int, int]:
    ranges = [torch.tensor(value_range(program, source), dtype=torch.int8) for source in node.args[:2]]
    left, right = torch.meshgrid(*ranges, indexing="ij")
    corners = int_add(left, right, *node.args[2:])  # type: ignore[arg-type]  # its schema
    return int(corners.min()), int(corners.max())


def _trimmed(program: Program, node: fx.Node) -> bool:
    """A table whose entries beyond the range of what is looked up repeat the nearest within."""
    table = program.constant(node.args[1])
    assert table is not None
    low, high = value_range(program, node.args[0])
    places = torch.arange(len(table)).clamp(low - _TABLE_START, high - _TABLE_START)
    trimmed = table[places]
    if torch.equal(trimmed, table):
        return False
    source = node.args[1]
    assert isinstance(source, fx.Node)
    with program.graph.inserting_before(node):
        node.update_arg(1, program.attribute(program.add_tensor(str(source.target), trimmed)))
    return True
