"""Chains of tables, tables that clamp, and tables that do nothing."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tersor.ir.integer_operators import INT_LINEAR, INT_LOOKUP, REQUANTIZE
from tersor.ir.program import Program
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.stage import Stage
from tersor.ir.structure import Structure
from tersor.passes.streamlining.fuse_lookups import FuseLookups

VALUES = torch.arange(-128, 128)


def program_of(*tables: Tensor, low: int = -128) -> Program:
    """A linear layer of int8, requantize, then one table after the other."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = torch.tensor([[2, -1], [1, 3]], dtype=torch.int8)
    tensors = {"m": torch.tensor(0.7), "w": weight}
    acc = graph.call_function(INT_LINEAR, (x, graph.get_attr("w"), None, 0))
    value = graph.call_function(REQUANTIZE, (acc, graph.get_attr("m"), 0, low, 127))
    for index, table in enumerate(tables):
        tensors[f"table{index}"] = table.to(torch.int8)
        value = graph.call_function(INT_LOOKUP, (value, graph.get_attr(f"table{index}")))
    graph.output((value,))
    inputs = (TensorSpec("x", torch.int8, (64, 2)),)
    signature = Signature(inputs, Structure("tuple", (Structure("leaf"),)), Structure("dict"), Structure("leaf"))
    return Program.build(graph, tensors, signature, stage=Stage.INTEGER)


def fused(before: Program) -> tuple[Program, list[fx.Node]]:
    """The program after the pass, which gives the same, and the tables that are left."""
    result = FuseLookups().run(before.copy())
    after = result.program
    after.changed()
    after.remove_unused_tensors()
    after.verify()
    x = torch.randint(-128, 128, (64, 2), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(before(x), after(x))
    tables = after.graph.find_nodes(op="call_function", target=INT_LOOKUP)
    assert result.modified == (len(tables) < str(before).count("int_lookup("))
    return after, tables


def test_three_tables_become_one() -> None:
    shuffled = torch.randperm(256, generator=torch.Generator().manual_seed(1)) - 128
    after, tables = fused(program_of(shuffled, VALUES.flip(0), shuffled))
    assert len(tables) == 1
    table = after.constant(tables[0].args[1])
    assert table is not None
    assert table.tolist() == shuffled[VALUES.flip(0)[shuffled + 128] + 128].tolist()


def test_a_table_that_clamps_goes_into_requantize() -> None:
    after, tables = fused(program_of(VALUES.clamp(-5, 40)))
    assert tables == []
    (requantize,) = after.graph.find_nodes(op="call_function", target=REQUANTIZE)
    assert requantize.args[3:5] == (-5, 40)


def test_a_table_that_does_nothing_over_its_range_disappears() -> None:
    relu = VALUES.clamp(min=0)
    after, tables = fused(program_of(relu, low=0))
    assert tables == []
    (requantize,) = after.graph.find_nodes(op="call_function", target=REQUANTIZE)
    assert requantize.args[3:5] == (0, 127)


def test_other_tables_stay() -> None:
    assert len(fused(program_of(VALUES.abs().clamp(max=127)))[1]) == 1
