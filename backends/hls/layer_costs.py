"""What each layer costs in a dataflow: cycles, from the folding that the part has room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.ir.program import Program

from ..clock import Clock
from ..layer_costs import LayerCosts
from .build import Builder
from .parts import find_part
from .rules import RULES
from .schedule import turns

if TYPE_CHECKING:
    from .backend import Hls


def cycles(program: Program, options: Hls) -> LayerCosts:
    """Cycles a frame of the slowest process of each node. All run at once, so the whole is the slowest of all.

    program: of the integer stage. Raises LoweringError where even the smallest design does not fit the part.
    """
    from .emit import choose

    choice = choose(Builder(program, RULES).build().graph(), options)
    nodes: dict[str, float] = {}
    for process in choice.design.processes:
        if process.layer is not None:
            nodes[process.layer.node] = max(nodes.get(process.layer.node, 0.0), float(turns(process)))
    part = find_part(options.part)
    clock = options.clock or part.clock
    source = f"by formula, frame to frame on {part.name} at {clock:g} MHz"
    return LayerCosts("cycles", Clock.MODELLED, float(choice.cycles), nodes, 1e-6 / clock, source)
