"""What goes first where layers cost time: what is worth least for what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.passes.manager import PassManager
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.axes import Remaining
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.criteria import Magnitude
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.pruning.prune_channels import PruneChannels, Ranking
from tersor.passes.pruning.targets import Latency, Macs


class Chain(nn.Module):
    """Four convolutions of one size, so that nothing but the table says which is dear."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.mean((2, 3))


def program() -> Program:
    torch.manual_seed(0)
    return trace(Chain().eval(), torch.randn(1, 16, 6, 6))


def widths(table: LayerTable, share: float = 0.6) -> list[int]:
    """Output channels of each convolution once so much of the time is left."""
    step = PruneChannels(Latency(share, table), criterion=Magnitude(normalized=True), ranking=Ranking.COST)
    found = PassManager([step], progress=False).run(program()).program
    return [found.tensor(name).shape[0] for name in found.parameters() if name.endswith("weight")]


def test_cuts_go_to_the_layer_that_is_dear() -> None:
    costs = {"conv2d": 1.0, "conv2d_1": 1.0, "conv2d_2": 8.0, "conv2d_3": 1.0}
    first, second, third, _ = widths(LayerTable.of(program(), costs))
    assert second < first  # the dear layer reads the second's channels, and writes the third's
    assert third < first


def test_a_table_of_equal_layers_cuts_where_most_layers_meet() -> None:
    first, second, third, _ = widths(LayerTable.of(program(), dict.fromkeys(("conv2d", "conv2d_1", "conv2d_2"), 1.0)))
    assert max(first, second) - min(first, second) <= 2
    assert third > second  # the last layer costs nothing


def test_a_cost_is_counted_as_the_program_cut_would_have_it() -> None:
    """The table of the program whole, asked for fewer channels, and asked of the program that has fewer channels."""
    given = program()
    table = LayerTable.of(given, {"conv2d": 2.0, "conv2d_1": 3.0, "relu": 0.5, "gone": 1.0}, rest=0.25)
    assert table.rest == 1.25
    found = dimensions(given)
    costs = Costs(given, found)
    assert table(costs, Remaining({})) == pytest.approx(6.75, rel=1e-3)
    (axis,) = {leaf.find() for leaf in found.tensors["layers.0.weight"][0:1]}
    halved = table(costs, Remaining({axis: 8}))
    assert halved == pytest.approx(1.25 + 1.0 + 1.5 + 0.25, rel=1e-3)
    step = PruneChannels(Macs(0.5), layers=(r"layers\.0\.weight",), criterion=Magnitude(), least=0.5)
    with pytest.raises(PassError, match="cannot be reached"):
        step(given)
    cut = PassManager([PruneChannels(Macs(0.75), layers=(r"layers\.0\.weight",))], progress=False).run(given).program
    assert cut.tensor("layers.0.weight").shape[0] == 8
    assert table(Costs(cut, dimensions(cut)), Remaining({})) == pytest.approx(halved, rel=1e-3)


def test_layers_that_run_at_once_cost_what_the_slowest_does() -> None:
    given = program()
    table = LayerTable.of(given, {"conv2d": 1.0, "conv2d_1": 9.0, "conv2d_2": 1.0}, at_once=True)
    assert table(Costs(given, dimensions(given)), Remaining({})) == pytest.approx(9.0, rel=1e-3)
    first, second, third, _ = widths(table)
    assert max(first, second) < third


def test_a_table_of_another_program_is_refused() -> None:
    with pytest.raises(PassError, match="of another program"):
        widths(LayerTable({"matmul": 1.0}))
