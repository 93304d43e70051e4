"""Which values of a fake-quantized program live on which integer grid, and which nodes work on such values.

In the IR a fake-quantize stands only where a value gets onto a grid. What moves values leaves them on it; a target that
wants the grid stated after every operator, or that picks integer kernels, asks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.passes.quantization.roles import WEIGHTS, Role, operands, role_of

aten = torch.ops.aten

_IDENTITIES = frozenset({aten.alias.default, aten.detach.default, aten.dropout.default})


@dataclass(frozen=True)
class Grid:
    """Integers from quant_min to quant_max; q stands for (q - zero_point) * scale. The tensors are given by name."""

    scale: str
    zero_point: str
    axis: int | None
    quant_min: int
    quant_max: int

    @classmethod
    def of(cls, node: fx.Node) -> Grid:
        """The grid of a fake-quantize node."""
        _, scale, zero_point, axis, quant_min, quant_max = node.args
        assert isinstance(scale, fx.Node)
        assert isinstance(zero_point, fx.Node)
        assert isinstance(quant_min, int)
        assert isinstance(quant_max, int)
        return cls(
            str(scale.target), str(zero_point.target), axis if isinstance(axis, int) else None, quant_min, quant_max
        )


def grids(program: Program) -> dict[fx.Node, Grid]:
    """The grid of every value that is on one: where it was put there, and behind moves and joins."""
    found: dict[fx.Node, Grid] = {}
    for node in program.graph.nodes:
        if node.target is FAKE_QUANTIZE:
            found[node] = Grid.of(node)
        elif (grid := _inherited(program, node, found)) is not None:
            found[node] = grid
    return found


def _inherited(program: Program, node: fx.Node, found: Mapping[fx.Node, Grid]) -> Grid | None:
    if not _keeps_grid(program, node):
        return None
    sources = [found.get(source) for source in _sources(program, node)]
    first = sources[0] if sources else None
    if first is None or first.axis is not None:
        return None
    return first if all(grid is not None and same(program, first, grid) for grid in sources) else None


def _keeps_grid(program: Program, node: fx.Node) -> bool:
    return node.target in _IDENTITIES or role_of(program, node) in (Role.MOVE, Role.JOIN)


def _sources(program: Program, node: fx.Node) -> list[fx.Node]:
    if node.target in _IDENTITIES:
        return [source for source in node.args[:1] if isinstance(source, fx.Node)]
    return operands(program, node)


def same(program: Program, left: Grid, right: Grid) -> bool:
    """Whether two grids hold the same values."""
    if left == right:
        return True
    if (left.axis, left.quant_min, left.quant_max) != (right.axis, right.quant_min, right.quant_max):
        return False
    pairs = ((left.scale, right.scale), (left.zero_point, right.zero_point))
    return all(torch.equal(program.tensor(a), program.tensor(b)) for a, b in pairs)


def integer_nodes(program: Program, found: Mapping[fx.Node, Grid]) -> frozenset[fx.Node]:
    """The nodes that integer kernels can run: they compute from grids to grids, or move values for one that does."""
    integer: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if _computes(program, node, found) or (
            node in found and _keeps_grid(program, node) and any(user in integer for user in node.users)
        ):
            integer.add(node)
    return frozenset(integer)


def _computes(program: Program, node: fx.Node, found: Mapping[fx.Node, Grid]) -> bool:
    layout = WEIGHTS.get(node.target)
    if layout is not None:
        return node.args[layout.weight] in found and node.args[0] in found
    if role_of(program, node) in (Role.ELEMENTWISE, Role.LOOKUP):
        return all(source in found for source in operands(program, node)) and _is_quantized(program, node)
    return False


def _is_quantized(program: Program, node: fx.Node) -> bool:
    """Whether the result goes onto a grid and nowhere else, clamps between left out."""
    users = list(node.users)
    if len(users) == 1 and role_of(program, users[0]) is Role.CLAMP:
        return _is_quantized(program, users[0])
    return bool(users) and all(user.target is FAKE_QUANTIZE for user in users)
