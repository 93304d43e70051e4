"""What each layer costs in a dataflow: cycles, from the folding that the part has room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from tersor.ir.accumulators import is_accumulator
from tersor.ir.integer_operators import REQUANTIZE
from tersor.ir.program import Program

from ..clock import Clock
from ..layer_costs import LayerCosts
from .build import Builder
from .parts import find_part
from .rules import RULES
from .schedule import turns

if TYPE_CHECKING:
    from .backend import Hls


def _names(node: fx.Node | None, name: str) -> list[str]:
    """A node, and the accumulator that it requantizes: one unit computes both."""
    if node is None or node.target is not REQUANTIZE:
        return [name]
    return [name, *(source.name for source in node.all_input_nodes if is_accumulator(source))]


def cycles(program: Program, options: Hls) -> LayerCosts:
    """Cycles a frame of the slowest process of each node. All run at once, so the whole is the slowest of all.

    program: of the integer stage. Raises LoweringError where even the smallest design does not fit the part.
    """
    from .emit import choose

    choice = choose(Builder(program, RULES).build().graph(), options)
    nodes: dict[str, float] = {}
    given = {node.name: node for node in program.graph.nodes}
    for process in choice.design.processes:
        if process.layer is not None:
            for name in _names(given.get(process.layer.node), process.layer.node):
                nodes[name] = max(nodes.get(name, 0.0), float(turns(process)))
    part = find_part(options.part)
    clock = options.clock or part.clock
    source = f"by formula, frame to frame on {part.name} at {clock:g} MHz"
    return LayerCosts("cycles", Clock.MODELLED, float(choice.cycles), nodes, 1e-6 / clock, source, at_once=True)
