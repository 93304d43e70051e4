"""What is concatenated is on one grid, the widest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor.backends.grids import grids
from tersor.frontends.torch_export import trace
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_SYMMETRIC
from tersor.passes.manager import PassManager
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.unify_joined_grids import UnifyJoinedGrids

aten = torch.ops.aten


class Branches(nn.Module):
    """`shared`: another convolution reads the narrow branch as well."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.last = nn.Conv2d(8, 4, 1)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        y, z = torch.relu(self.a(x)), torch.relu(self.b(x) * 1.0)
        out: Tensor = self.last(torch.cat([y, z], 1))
        return out + self.d(y) if self.shared else out


def separated(shared: bool) -> Program:
    """A program whose concatenation has parts on grids of their own, as models quantized elsewhere do."""
    torch.manual_seed(0)
    batches = [torch.randn(2, 4, 8, 8) for _ in range(2)]
    program = Quantize(INT8_SYMMETRIC, calibration=batches)(trace(Branches(shared), (batches[0],)))
    (cat,) = program.graph.find_nodes(op="call_function", target=aten.cat.default)
    first = cat.args[0][0]
    assert first.target is FAKE_QUANTIZE
    narrow = program.add_tensor("narrow", program.constant(first.args[1]).detach() / 2)  # type: ignore[union-attr]
    with program.graph.inserting_before(first):
        first.update_arg(1, program.attribute(narrow))
    program.changed()
    assert cat not in grids(program)
    return program


@pytest.mark.parametrize("shared", [False, True])
def test_parts_get_the_widest_grid_and_the_sum_moves_bytes(shared: bool) -> None:
    program = separated(shared)
    result = PassManager([UnifyJoinedGrids()], progress=False).run(program).program
    (cat,) = result.graph.find_nodes(op="call_function", target=aten.cat.default)
    found = grids(result)
    assert cat in found
    scales = [float(result.tensor(found[part].scale)) for part in cat.args[0]]
    (old,) = program.graph.find_nodes(op="call_function", target=aten.cat.default)
    before = [float(program.constant(part.args[1])) for part in old.args[0]]  # type: ignore[arg-type]
    assert scales == [max(before)] * 2
    assert before[0] < before[1]


def test_a_part_that_others_read_keeps_its_grid_for_them() -> None:
    program = separated(shared=True)
    result = UnifyJoinedGrids()(program)
    readers = list(result.graph.find_nodes(op="call_function", target=aten.conv2d.default))
    scales = [float(result.constant(n.args[0].args[1])) for n in readers if n.args[0].target is FAKE_QUANTIZE]  # type: ignore[arg-type]
    assert float(program.tensor("narrow")) in scales


def test_equal_grids_are_left() -> None:
    once = UnifyJoinedGrids()(separated(shared=False))
    assert not UnifyJoinedGrids().run(once.copy()).modified
