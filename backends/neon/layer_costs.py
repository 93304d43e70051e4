"""What each layer costs on ARM: instructions, from what kernels were counted to take under emulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.ir.program import Program

from ..clock import Clock
from ..layer_costs import LayerCosts
from .backend import BLOCKS
from .choice import DEPTHWISE, instructions
from .pack import round_up
from .plan import Planner
from .rules import RULES
from .steps import (
    Convolution,
    Copy,
    Fill,
    FromBlocks,
    LinearOutput,
    Lookup,
    Phases,
    Pool,
    Product,
    QuantizeInput,
    Step,
    Sum,
    ToBlocks,
)

if TYPE_CHECKING:
    from .backend import Neon

_CALL = 500.0
"""Instructions that a call of a kernel takes before it computes."""

_REQUANTIZE = 1.6
"""Instructions that bias, multiplier and clamp of one result take."""

_TILE = 4
"""Pixels of a row that a kernel computes together; a narrower row takes as long."""

_PER_VALUE: dict[type[Step], float] = {
    Fill: 0.35,
    QuantizeInput: 1.8,
    Copy: 1.0,
    Phases: 0.9,
    ToBlocks: 1.1,
    FromBlocks: 1.1,
    Lookup: 1.5,
    Sum: 1.6,
    Product: 2.0,
    Pool: 0.65,
}
"""By step, of each value that is read or written, whichever are more. What is not here takes `_OTHERS`."""

_OTHERS = 2.0


def count_instructions(program: Program, options: Neon) -> LayerCosts:
    """Instructions of one run by node, on the last of the instruction sets. program: of the integer stage."""
    isa = options.isas[-1]
    plan = Planner(program, isa, BLOCKS[isa], RULES).plan()
    nodes: dict[str, float] = {}
    for step in plan.steps:
        nodes[step.node] = nodes.get(step.node, 0.0) + of_step(step, isa)
    source = f"by the counts of its kernels for {isa}, under emulation"
    return LayerCosts("instructions", Clock.MODELLED, sum(nodes.values()), nodes, source=source)


def of_step(step: Step, isa: str) -> float:
    """Instructions of one step."""
    if isinstance(step, Convolution):
        return _CALL + _convolution(step, isa)
    if isinstance(step, LinearOutput):
        kernel = "dense_vector" if step.rows == 1 else "dense"
        weight = step.weight.reshape(*step.weight.shape, 1, 1)
        return _CALL + instructions(isa, kernel, weight) * step.rows + _REQUANTIZE * step.rows * len(weight)
    counts = [walk.buffer.count for walk in (*step.reads, *((step.writes,) if step.writes else ()))]
    multiplied = instructions(isa, "dense", None) * step.macs
    return _CALL + _PER_VALUE.get(type(step), _OTHERS) * max(counts, default=0) + multiplied


def _convolution(step: Convolution, isa: str) -> float:
    pixels = step.rows * round_up(step.width, _TILE) if step.kernel.endswith("dense") else step.rows * step.width
    results = step.weight.shape[0] * step.rows * step.width
    if step.kernel == "depthwise":
        return float(DEPTHWISE * step.weight.size * step.rows * step.width + _REQUANTIZE * results)
    return float(instructions(isa, step.kernel, step.weight) * pixels + _REQUANTIZE * results)
