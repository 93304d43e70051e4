"""What each layer costs on ARM: instructions, from what kernels were counted to take under emulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.ir.program import Program

from ..clock import Clock
from ..layer_costs import LayerCosts
from .backend import BLOCKS
from .choice import Plane, work_of
from .plan import Planner
from .rules import RULES
from .steps import (
    Convolution,
    Copy,
    DequantizeOutput,
    Fill,
    FromBlocks,
    LinearOutput,
    Lookup,
    Normalize,
    Phases,
    Pool,
    Product,
    QuantizeInput,
    Softmax,
    Step,
    Sum,
    ToBlocks,
)

if TYPE_CHECKING:
    from .backend import Neon

_CALL = 30.0
"""Instructions that a step takes before it computes."""

_PER_VALUE: dict[type[Step], float] = {
    Fill: 0.1,
    QuantizeInput: 1.65,
    DequantizeOutput: 1.6,
    Copy: 6.0,
    Phases: 0.3,
    ToBlocks: 0.8,
    FromBlocks: 1.7,
    Lookup: 1.7,
    Sum: 1.8,
    Product: 2.5,
    Pool: 0.6,
    Normalize: 58.0,
    Softmax: 40.0,
}
"""By step, of each value that is read or written, whichever are more, as counted in whole models; else `_OTHERS`."""

_OTHERS = 2.5

_MATMUL = {"neon": 0.6, "dotprod": 0.25, "i8mm": 0.25}
"""Instructions a multiply-accumulate of two activations."""

_PORTABLE_MAC = 3.0
"""The same of a linear layer whose sums become a float output."""


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
        return _CALL + _PORTABLE_MAC * step.macs
    counts = [walk.buffer.count for walk in (*step.reads, *((step.writes,) if step.writes else ()))]
    return _CALL + _PER_VALUE.get(type(step), _OTHERS) * max(counts, default=0) + _MATMUL[isa] * step.macs


def _convolution(step: Convolution, isa: str) -> float:
    """By the counts of its kernel, and of the sum that is part of it."""
    assert step.writes is not None
    assert step.requantize is not None
    y, block = step.writes.buffer.layout, step.writes.buffer.layout.block
    flat = step.rows == 1 or step.reads[0].affine.row_bytes == y.row_bytes == step.width * block
    plane = Plane(step.rows, step.width, flat, step.requantize.magic)
    added = _PER_VALUE[Sum] * y.blocks * block * step.rows * step.width if step.residual else 0.0
    return work_of(isa, step.kernel, step.weight, plane).instructions() + added
