"""Pads before convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from tersor.ir.integer_operators import INT_CONV, INT_MAX_POOL
from tersor.ir.program import Program
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.stage import Stage
from tersor.ir.structure import Structure
from tersor.passes.streamlining.fold_pads import FoldPads

PAD = torch.ops.aten.constant_pad_nd.default


def padded(pad: list[int], value: int, zero_points: tuple[int, ...], pooled: bool = False) -> Program:
    """A pad that a convolution for each zero point reads, which pads columns by 2 itself; and perhaps a pool."""
    graph = fx.Graph()
    before = graph.call_function(PAD, (graph.placeholder("x"), pad, value))
    weight = torch.randint(-9, 10, (3, 2, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    outputs = [
        graph.call_function(INT_CONV, (before, graph.get_attr("w"), None, zero, [1, 1], [0, 2], [1, 1], 1))
        for zero in zero_points
    ]
    if pooled:
        outputs.append(graph.call_function(INT_MAX_POOL, (before, [2, 2], [2, 2], [0, 0], [1, 1], False)))
    graph.output(tuple(outputs))
    leaves = Structure("tuple", (Structure("leaf"),) * len(outputs))
    signature = Signature(
        (TensorSpec("x", torch.int8, (1, 2, 7, 6)),),
        Structure("tuple", (Structure("leaf"),)),
        Structure("dict"),
        leaves,
    )
    return Program.build(graph, {"w": weight}, signature, stage=Stage.INTEGER)


def values(program: Program) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    program.changed()
    return program.run([torch.randint(-128, 128, (1, 2, 7, 6), generator=generator).to(torch.int8)])


@pytest.mark.parametrize("pad", [[1, 1, 2, 2], [0, 0, 1, 1], [3, 3], [1, 1, 1, 1, 0, 0, 0, 0]])
def test_even_pads_go_into_every_reader(pad: list[int]) -> None:
    before = padded(pad, -7, (-7, -7))
    after = FoldPads().run(before.copy())
    assert after.modified
    assert not after.program.graph.find_nodes(op="call_function", target=PAD)
    rows, columns = [*pad, 0, 0][2], pad[0]
    for node in after.program.graph.find_nodes(op="call_function", target=INT_CONV):
        assert node.args[5] == [rows, columns + 2]
    assert all(torch.equal(a, b) for a, b in zip(values(before), values(after.program), strict=True))


@pytest.mark.parametrize("pad", [[1, 0, 0, 1], [1, 2, 1, 1], [-1, -1, 1, 1]])
def test_uneven_and_other_pads_stay(pad: list[int]) -> None:
    assert not FoldPads().run(padded(pad, 0, (0,))).modified


def test_another_value_or_another_reader_stays() -> None:
    assert not FoldPads().run(padded([1, 1, 1, 1], 3, (0,))).modified
    assert not FoldPads().run(padded([1, 1, 1, 1], 0, (0, 1))).modified
    assert not FoldPads().run(padded([1, 1, 1, 1], 0, (0,), pooled=True)).modified
