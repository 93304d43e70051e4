"""Latency by a table: with a clock that counts, so that what the table says can be checked; and on ONNX Runtime."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.ir.macs import RULES, multiply_accumulates
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.axes import Remaining
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.latency import LatencyTable


def clock(program: ts.Program) -> float:
    """A machine on which a product takes a time of its own and one that is not linear in its work."""
    nodes = [node for node in program.graph.nodes if node.target in RULES]
    work = [multiply_accumulates(node, lambda tensor: tuple(map(int, tensor.shape))) for node in nodes]
    return 1e-3 + sum(1e-5 + 1e-6 * math.pow(macs, 0.8) for macs in work)


def network() -> ts.Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    return ts.trace(model.eval(), (torch.randn(1, 3, 16, 16),))


def test_the_table_gives_the_whole_at_full_size() -> None:
    program = network()
    table = LatencyTable.measure(program, clock)
    assert table(Costs(program, dimensions(program)), Remaining({})) == pytest.approx(clock(program), rel=1e-3)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_the_share_is_met_on_the_machine(share: float) -> None:
    program = network()
    table = LatencyTable.measure(program, clock)
    pruned = ts.PruneChannels(ts.Latency(share, table))(program)
    assert clock(pruned) / clock(program) == pytest.approx(share, abs=0.08), "the table interpolates"
    report = ts.PassManager([ts.PruneChannels(ts.Latency(share, table))]).run(program).report
    assert f"asked {share:g}" in report.rows[-1].notes[0]
    assert "closest" not in report.rows[-1].notes[0]


def test_a_table_of_another_program_is_refused() -> None:
    table = LatencyTable.measure(network(), clock)
    other = ts.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(1, 4),))
    with pytest.raises(ts.TersorError, match="of another program"):
        ts.PruneChannels(ts.Latency(0.5, table))(other)
    with pytest.raises(ts.TersorError, match="needs a table"):
        ts.Latency(0.5)
    with pytest.raises(ts.TersorError, match="gives no time"):
        LatencyTable.measure(network(), lambda program: float("nan"))


def test_a_table_of_a_transformer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    program = ts.trace(layer.eval(), (torch.randn(2, 5, 16),))
    table = LatencyTable.measure(program, clock)
    assert table(Costs(program, dimensions(program)), Remaining({})) == pytest.approx(clock(program), rel=1e-3)
    ts.PruneChannels(ts.Latency(0.9, table))(program).verify()


def test_a_table_measured_on_onnx_runtime() -> None:
    program = ts.trace(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)), (torch.randn(8, 32),))
    table = ts.latency_table(program, "onnxruntime", seconds=0.002, threads=1)
    assert table(Costs(program, dimensions(program)), Remaining({})) > 0
