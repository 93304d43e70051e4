"""Narrowed grids: no value changes, and what is left is reached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.accumulators import value_range
from tersor.ir.integer_operators import INT_ADD, INT_LOOKUP, REQUANTIZE
from tersor.ir.program import Program
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.manager import PassManager
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.streamlining.tighten_grids import TightenGrids


class Net(nn.Module):
    """A layer whose grid reaches far beyond its results, a table, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.first(x)) + torch.tanh(self.second(x))


def lowered(scale: float) -> Program:
    torch.manual_seed(0)
    model = Net()
    batches = [torch.randn(8, 2) for _ in range(2)]
    quantize = Quantize(calibration=batches, coverage=Coverage.EVERYTHING)
    program = PassManager([quantize, LowerToInteger()]).run(trace(model, (batches[0],))).program
    for node in program.graph.find_nodes(op="call_function", target=REQUANTIZE):
        name = str(node.args[1].target)
        program.set_tensor(name, program.tensor(name) * scale)  # grids that are too wide by this
    return program


def test_every_narrowed_grid_is_reached_and_no_value_changes() -> None:
    before = lowered(0.1)
    after = PassManager([TightenGrids()]).run(before.copy()).program
    x = torch.cat([torch.randn(200, 2) * 20, torch.tensor([[a, b] for a in (-99.0, 99.0) for b in (-99.0, 99.0)])])
    x = x.reshape(-1, 8, 2) if len(x) % 8 == 0 else x[: len(x) // 8 * 8].reshape(-1, 8, 2)
    for batch in x:
        assert torch.equal(before(batch), after(batch))
    bounds = [node.args[3:5] for node in after.graph.find_nodes(op="call_function", target=REQUANTIZE)]
    assert all(high - low < 60 for low, high in bounds)
    assert bounds != [node.args[3:5] for node in before.graph.find_nodes(op="call_function", target=REQUANTIZE)]


def test_tables_and_sums_follow() -> None:
    after = PassManager([TightenGrids()]).run(lowered(0.1)).program
    for node in after.graph.find_nodes(op="call_function", target=INT_LOOKUP):
        table = after.constant(node.args[1])
        assert table is not None
        low, high = value_range(after, node.args[0])
        inside = table[low + 128 : high + 129]
        assert (int(table.min()), int(table.max())) == (int(inside.min()), int(inside.max()))
    (total,) = after.graph.find_nodes(op="call_function", target=INT_ADD)
    assert total.args[8:10] != (-128, 127)


def test_a_second_run_finds_nothing() -> None:
    once = PassManager([TightenGrids()]).run(lowered(0.1)).program
    assert not TightenGrids().run(once.copy()).modified
