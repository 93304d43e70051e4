"""A residual branch reads the grid that its value has anyway."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_SYMMETRIC
from tersor.passes.manager import PassManager
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.share_residual_grids import ShareResidualGrids

aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        out: Tensor = self.c(torch.relu(self.b(y) + y))
        return out


def quantized() -> Program:
    torch.manual_seed(0)
    batches = [torch.randn(2, 4, 8, 8) for _ in range(2)]
    return Quantize(INT8_SYMMETRIC, calibration=batches)(trace(Block(), (batches[0],)))


def bare(program: Program) -> Program:
    """The residual branch taken off its grid, as in models that were quantized elsewhere."""
    (add,) = program.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    relu = next(node for node in program.graph.nodes if node.name == "relu")
    (grid,) = (user for user in relu.users if user.target is FAKE_QUANTIZE)
    add.replace_input_with(grid, relu)
    program.changed()
    return program


def test_the_branch_is_read_from_its_grid_again() -> None:
    whole = quantized()
    result = PassManager([ShareResidualGrids()], progress=False).run(bare(whole.copy()))
    assert str(result.program) == str(whole)
    assert result.program.history[-1].notes == ("1 residual branches read from a grid",)


def test_nothing_is_done_where_both_branches_are_on_grids() -> None:
    result = ShareResidualGrids().run(quantized())
    assert (result.modified, result.notes) == (False, ())


def test_a_sum_without_a_grid_at_hand_is_named() -> None:
    program = bare(quantized())
    (add,) = program.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    with program.graph.inserting_before(add):
        relu = next(node for node in program.graph.nodes if node.name == "relu")
        doubled = program.call(aten.tanh.default, (relu,), like=relu)
    add.replace_input_with(relu, doubled)
    result = ShareResidualGrids().run(program)
    assert (result.modified, result.notes) == (False, ("one branch alone is on a grid: add",))
