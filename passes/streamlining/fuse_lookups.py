"""Tables of tables as one, and tables that only clamp as a clamp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.accumulators import value_range
from tersor.ir.integer_operators import INT_ADD, INT_LOOKUP, REQUANTIZE
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, on_the_cpu

_CLAMP_PLACE: dict[object, int] = {REQUANTIZE: 3, INT_ADD: 8}
"""Operators that clamp, and where quant_min is; quant_max follows."""
_START = -128


@dataclass(frozen=True)
class FuseLookups(Pass):
    """Absorb tables in what stands before them.

        %a = int_lookup(%x, @f)
        %b = int_lookup(%a, @g)               ->    %b = int_lookup(%x, @g_of_f)

        %q = requantize(%acc, @m, 0, -128, 127)
        %r = int_lookup(%q, @clamp)           ->    %r = requantize(%acc, @m, 0, 0, 127)

    A table that gives back what it is given over the whole range that it is read at disappears.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.INTEGER})

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Absorb in graph order, so that chains of any length end as one table."""
        absorbed = 0
        for node in program.graph.find_nodes(op="call_function", target=INT_LOOKUP):
            absorbed += _join(program, node)
            absorbed += _absorb(program, node)
        program.graph.eliminate_dead_code()
        return PassResult(program, absorbed > 0, (f"tables absorbed: {absorbed}",))


def _join(program: Program, node: fx.Node) -> int:
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target is not INT_LOOKUP:
        return 0
    outer, inner = _table(program, node), _table(program, source)
    with program.graph.inserting_before(node):
        joined = program.add_tensor(f"{node.name}.table", outer[inner.long() - _START])
        node.update_arg(1, program.attribute(joined))
    node.update_arg(0, source.args[0])
    return 1


def _absorb(program: Program, node: fx.Node) -> int:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    low, high = value_range(program, source)
    given = torch.arange(low, high + 1, dtype=torch.int8)
    found = _table(program, node)[given.long() - _START]
    if torch.equal(found, given):
        program.replace(node, source)
        return 1
    ends = int(found[0]), int(found[-1])
    place = _CLAMP_PLACE.get(source.target)
    if place is None or len(source.users) > 1 or not torch.equal(found, given.clamp(*ends)):
        return 0
    for index, bound in enumerate(ends):
        source.update_arg(place + index, bound)
    program.replace(node, source)
    return 1


def _table(program: Program, node: fx.Node) -> Tensor:
    table = program.constant(node.args[1])
    assert table is not None  # the verifier holds that a table is a tensor of the program
    return table
