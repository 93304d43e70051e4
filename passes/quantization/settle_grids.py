"""Grids on which every kernel rounds alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.integer_stage import is_lowered
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, on_the_cpu
from ..progress import track
from .calibrate import grid_behind
from .integer_grid import IntegerGrid
from .kernel_forms import FORMS, PairGrids, agree
from .roles import Role, clamp_range, operands, role_of

_NUDGE = 2.0**-13
_SWEEPS = 3


@dataclass(frozen=True)
class SettleGrids(Pass):
    """Nudge the output scales of quantized sums and products until all kernels give the same bits.

    A quantized sum is computed through other floats by the definition, by x86 with fused multiply-add and without.
    Among 65,536 pairs of inputs one or so is near enough to a tie that they part. A scale that is 0.01 to 0.1 % larger
    has its near ties elsewhere, and soon none at all. That is proven on all pairs, for every form in `kernel_forms`.
    Where a clamp ends the grid, the scale becomes smaller instead, so that the grid stays within the clamp.

    most: how many steps of 2**-13 a scale may move before the sum is left as it is, which the notes then say.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    most: int = 64

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Settle in graph order; scales that several share are looked at again."""
        pairs = list(_pairs(program))
        moved: set[str] = set()
        for _ in range(_SWEEPS):
            changed = {pair.output.scale for pair in track(pairs, "settle") if self._settle(program, pair)}
            moved |= changed
            if not changed:
                break
        open_ = [pair.node.name for pair in pairs if not pair.agrees(program)]
        notes = [f"{len(pairs)} sums and products, {len(moved)} scales moved"] if pairs else []
        if open_:
            notes.append(f"kernels may part by a step: {', '.join(open_)}")
        return PassResult(program, bool(moved), tuple(notes))

    def _settle(self, program: Program, pair: _Pair) -> bool:
        """Whether the pair's output scale was moved: up, or down where a clamp ends the grid."""
        if pair.agrees(program):
            return False
        scale = pair.output.step(program)
        for step in range(1, self.most + 1):
            tried = (scale * (1 + pair.direction * step * _NUDGE)).float()
            if pair.agrees(program, tried):
                program.set_tensor(pair.output.scale, tried.reshape(program.tensor(pair.output.scale).shape))
                return True
        return False


@dataclass(frozen=True)
class _Pair:
    """A sum or product of two values on grids whose result goes onto a grid."""

    node: fx.Node
    inputs: tuple[IntegerGrid, IntegerGrid]
    output: IntegerGrid
    direction: int

    def agrees(self, program: Program, tried: Tensor | None = None) -> bool:
        """Whether every kernel gives the same bits, with `tried` for the output's scale where that is given."""
        every = (*self.inputs, self.output)
        moved = {} if tried is None else {self.output.scale: tried}
        scales = torch.stack([moved.get(grid.scale, grid.step(program)) for grid in every])
        left, right, result = (grid.zero_point for grid in every)
        grids = PairGrids(scales, (left, right, result), self.output.quant_min, self.output.quant_max)
        return agree(self.node.target, grids)


def _pairs(program: Program) -> Iterator[_Pair]:
    for node in program.graph.nodes:
        if node.target not in FORMS or role_of(program, node) is not Role.ELEMENTWISE:
            continue
        sources = [_grid(program, source) for source in operands(program, node)]
        result, clamped = _result(program, node)
        output = _grid(program, result)
        if len(sources) == 2 and sources[0] and sources[1] and output:
            yield _Pair(node, (sources[0], sources[1]), output, -1 if clamped else 1)


def _grid(program: Program, node: object) -> IntegerGrid | None:
    found = grid_behind(program, node)
    one = found is not None and found.args[3] is None and is_lowered(program, found)
    return IntegerGrid.of(program, found) if found is not None and one else None


def _result(program: Program, node: fx.Node) -> tuple[fx.Node | None, bool]:
    """What quantizes a node's result, behind clamps, and whether one of them ends it; None where it is not one node.

    A grid that does not reach past the clamp makes the clamp free, and has to stay that way.
    """
    ended = False
    while len(node.users) == 1:
        (node,) = node.users
        if role_of(program, node) is not Role.CLAMP:
            return node, ended
        ended = ended or clamp_range(node)[1] < math.inf
    return None, ended
