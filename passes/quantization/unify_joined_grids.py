"""Concatenations whose parts are on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program

from ..base import Pass, PassResult, Promise, on_the_cpu
from .calibrate import grid_behind
from .roles import Role, operands, role_of


@dataclass(frozen=True)
class UnifyJoinedGrids(Pass):
    """Put the parts of a concatenation on the widest of their grids, so that it moves bytes and computes nothing.

        %a = fake_quantize(%x, scale=0.1, ...)           %a = fake_quantize(%x, scale=0.2, ...)
        %b = fake_quantize(%y, scale=0.2, ...)           %b = fake_quantize(%y, scale=0.2, ...)
        %cat = cat([%a, %b])                             %cat = cat([%a, %b])

    A part that others read as well keeps its grid for them, and is put on the common one for the concatenation alone.
    `InsertFakeQuant` makes one grid of them from the start; models quantized elsewhere may not have that. A part that
    is on no grid, or zero points that differ, leave a concatenation as it is.
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Look at every concatenation, in order."""
        unified = sum(_unify(program, node) for node in list(program.graph.nodes) if _joins(program, node))
        notes = (f"{unified} concatenations put on one grid",) if unified else ()
        return PassResult(program, bool(unified), notes)


def _joins(program: Program, node: fx.Node) -> bool:
    return role_of(program, node) is Role.JOIN


def _unify(program: Program, node: fx.Node) -> bool:
    parts = operands(program, node)
    behind = [grid_behind(program, part) for part in parts]
    known = [grid for grid in behind if grid is not None and grid.args[3] is None]
    if len(known) < len(parts) or len({_kind(program, grid) for grid in known}) != 1:
        return False
    widest = max(known, key=lambda grid: float(program.tensor(_scale(grid))))
    changed = False
    for part, grid in zip(parts, known, strict=True):
        if float(program.tensor(_scale(grid))) == float(program.tensor(_scale(widest))):
            continue
        _put(program, node, part, grid, widest)
        changed = True
    return changed


def _put(program: Program, node: fx.Node, part: fx.Node, grid: fx.Node, widest: fx.Node) -> None:
    """Give the part the widest's scale: by its own grid where nobody else reads that, else by one more."""
    with program.graph.inserting_before(node):
        source = grid.args[0] if part is grid and len(grid.users) == 1 else part
        scale, zero = (program.attribute(str(argument.target)) for argument in widest.args[1:3])  # type: ignore[union-attr]
        arguments = (source, scale, zero, None, *widest.args[4:6])
        node.replace_input_with(part, program.call(FAKE_QUANTIZE, arguments, like=part, name=f"{part.name}_joined"))


def _kind(program: Program, grid: fx.Node) -> tuple[object, ...]:
    """Zero point and bounds."""
    zero = program.constant(grid.args[2])
    return (None if zero is None else int(zero), *grid.args[4:6])


def _scale(grid: fx.Node) -> str:
    scale = grid.args[1]
    assert isinstance(scale, fx.Node)
    return str(scale.target)
