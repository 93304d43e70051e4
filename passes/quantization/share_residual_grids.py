"""Residual sums whose branches are both on grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program

from ..base import Pass, PassResult, Promise, on_the_cpu
from .calibrate import grid_behind
from .roles import Role, operands, role_of

aten = torch.ops.aten


@dataclass(frozen=True)
class ShareResidualGrids(Pass):
    """Let a sum of a value on a grid and one that is not read the latter from a grid that it has anyway.

        %q = fake_quantize(%x, ...)                      %q = fake_quantize(%x, ...)
        %conv2d = conv2d(%q, ...)                        %conv2d = conv2d(%q, ...)
        %c = fake_quantize(%conv2d, ...)                 %c = fake_quantize(%conv2d, ...)
        %add = add(%c, %x)                               %add = add(%c, %q)

    A GPU's kernel then reads one byte a value on both branches instead of one and four. Sums without such a grid at
    hand are named in the notes: calibration would have to give them one.
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Look at every sum of two activations."""
        order = {node: place for place, node in enumerate(program.graph.nodes)}
        shared, left = 0, []
        for node in program.graph.find_nodes(op="call_function", target=aten.add.Tensor):
            for branch in _lone_branches(program, node):
                grid = next((user for user in branch.users if _is_grid(program, user)), None)
                if grid is None or order[grid] > order[node]:
                    left.append(node.name)
                    continue
                node.replace_input_with(branch, grid)
                shared += 1
        notes = [f"{shared} residual branches read from a grid"] if shared else []
        notes += [f"one branch alone is on a grid: {', '.join(left)}"] if left else []
        return PassResult(program, bool(shared), tuple(notes))


def _lone_branches(program: Program, node: fx.Node) -> list[fx.Node]:
    """The branch that is not on a grid, where the other is."""
    if role_of(program, node) is not Role.ELEMENTWISE:
        return []
    sources = operands(program, node)
    bare = [source for source in sources if grid_behind(program, source) is None]
    return bare if len(sources) == 2 and len(bare) == 1 else []


def _is_grid(program: Program, node: fx.Node) -> bool:
    return node.target is FAKE_QUANTIZE and node.args[3] is None
