"""The pass: targets, rankings, limits, what is kept, what is refused, and what the program can still do afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.cut import cut
from tersor.passes.pruning.flow import Kind
from tersor.passes.pruning.groups import groups
from tersor.passes.pruning.targets import Target


class Net(nn.Module):
    """Two stages, a residual addition, a squeeze, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1))
        self.wide = nn.Conv2d(16, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        logits: Tensor = self.head(torch.relu(self.wide(x)).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def program() -> ts.Program:
    torch.manual_seed(0)
    return ts.trace(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic={"x": {0: "batch"}})


def images(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 10, (4,), generator=generator))
        for _ in range(count)
    ]


def spent(program: ts.Program, target: Target) -> float:
    cost = program.cost()
    return {"MACs": cost.macs, "parameters": cost.parameters, "parameter bytes": 4 * cost.parameters}[target.what]


@pytest.mark.parametrize("ranking", ts.Ranking)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", [ts.Macs, ts.Parameters, ts.Bytes])
def test_targets_are_met(program: ts.Program, kind: Any, share: float, ranking: ts.Ranking) -> None:
    """The cost is that of the program that comes out, counted by the IR and not by the pass."""
    target = kind(share)
    pruned = ts.PruneChannels(target, ranking=ranking)(program)
    assert spent(pruned, target) / spent(program, target) == pytest.approx(share, rel=0.02)


CRITERIA = [
    ts.Magnitude(),
    ts.Magnitude(1),
    ts.Magnitude(normalized=True),
    ts.Taylor(images(), nn.functional.cross_entropy),
    ts.Fisher(images(), nn.functional.cross_entropy),
    ts.ActivationVariance([x for x, _ in images()]),
    ts.GeometricMedian(),
    ts.BatchNormScale(),
    ts.Random(3),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_each_criterion_prunes(program: ts.Program, criterion: ts.Criterion) -> None:
    pruned = ts.PruneChannels(ts.Parameters(0.8), criterion)(program)
    assert pruned.cost().parameters < 0.9 * program.cost().parameters
    with torch.no_grad():
        assert pruned(torch.randn(5, 3, 8, 8)).shape == (5, 10)


def test_a_criterion_of_ones_own_in_four_lines(program: ts.Program) -> None:
    @dataclass(frozen=True)
    class Largest(ts.Criterion):
        def score(self, group: ts.Group, gathered: Any) -> Tensor:
            return torch.stack([member.rows().abs().amax(1) for member in group.members]).sum(0)

    assert ts.PruneChannels(ts.Macs(0.5), Largest())(program).cost().macs < program.cost().macs


def test_the_least_worth_goes_first() -> None:
    """Channels whose weights are nearly zero go, and the outputs hardly change."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 20), nn.Linear(20, 3)
    model = nn.Sequential(first, nn.ReLU(), last).eval()
    weak = torch.randperm(20)[:10]
    with torch.no_grad():
        for parameter in (first.weight, first.bias):
            parameter[weak] *= 1e-6
        last.weight[:, weak] *= 1e-6
    x = torch.randn(50, 6)
    pruned = ts.PruneChannels(ts.Channels(0.5))(ts.trace(model, (x,)))
    torch.testing.assert_close(pruned(x), model(x), atol=1e-5, rtol=1e-4)


def test_counts_are_multiples(program: ts.Program) -> None:
    pruned = ts.PruneChannels(ts.Macs(0.5), multiple=8)(program)
    sizes = {name: tuple(tensor.shape) for name, tensor in pruned.parameters().items()}
    assert all(size % 8 == 0 for name, shape in sizes.items() for size in shape[:1] if not name.startswith("head"))
    assert pruned.cost().macs < 0.7 * program.cost().macs


def test_least_and_most_bound_each_axis(program: ts.Program) -> None:
    pruned = ts.PruneChannels(ts.Macs(0.6), ts.Random(), least=0.5, most=0.9)(program)
    for name in ("stem.0.weight", "body.0.weight", "wide.weight"):
        before, after = program.tensor(name).shape[0], pruned.tensor(name).shape[0]
        assert 0.5 * before <= after <= 0.9 * before


def test_layers_are_kept_or_chosen(program: ts.Program) -> None:
    kept = ts.PruneChannels(ts.Macs(0.6), keep=(r"wide\.",))(program)
    assert kept.tensor("wide.weight").shape == (64, 16, 1, 1)
    chosen = ts.PruneChannels(ts.Channels(0.5), layers=(r"body\.0\.bias",))(program)
    changed = {name for name, tensor in program.parameters().items() if tensor.shape != chosen.tensor(name).shape}
    assert changed == {"body.0.weight", "body.0.bias", "body.2.weight"}


def test_outputs_shrink_only_when_asked(program: ts.Program) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert ts.PruneChannels(ts.Channels(0.3))(program)(x).shape == (2, 10)
    assert ts.PruneChannels(ts.Channels(0.3), ranking=ts.Ranking.LOCAL, free_outputs=True)(program)(x).shape == (2, 3)


def test_inputs_shrink_only_when_asked() -> None:
    torch.manual_seed(0)
    program = ts.trace(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (torch.randn(2, 8),))
    pruned = ts.PruneChannels(ts.Channels(0.5), ranking=ts.Ranking.LOCAL, free_inputs=True)(program)
    assert pruned.signature.inputs[0].shape == (2, 4)
    assert pruned(torch.randn(2, 4)).shape == (2, 3)


def test_only_heads() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    program = ts.trace(layer.eval(), (torch.randn(2, 5, 32),))
    pruned = ts.PruneChannels(ts.Channels(0.5), kinds=(Kind.HEADS,))(program)
    assert pruned.tensor("self_attn.out_proj.weight").shape == (32, 16)
    assert pruned.tensor("linear1.weight").shape == (64, 32)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_impossible_target_says_the_smallest_that_is_possible(program: ts.Program) -> None:
    with pytest.raises(ts.TersorError, match="cannot be reached") as caught:
        ts.PruneChannels(ts.Macs(0.01), least=0.5)(program)
    smallest = float(str(caught.value).split("at least ")[1].split()[0])
    reached = ts.PruneChannels(ts.Macs(smallest), least=0.5)(program)
    assert reached.cost().macs / program.cost().macs == pytest.approx(smallest, rel=0.02)


def test_a_criterion_without_data(program: ts.Program) -> None:
    with pytest.raises(ts.TersorError, match="Taylor needs data"):
        ts.PruneChannels(criterion=ts.Taylor())(program)
    with pytest.raises(ts.TersorError, match="Fisher needs a loss"):
        ts.PruneChannels(criterion=ts.Fisher(images()))(program)
    with pytest.raises(ts.TersorError, match="the data is empty"):
        ts.PruneChannels(criterion=ts.Taylor([], nn.functional.cross_entropy))(program)


def test_a_loss_that_is_not_finite(program: ts.Program) -> None:
    with pytest.raises(ts.TersorError, match="not finite"):
        ts.PruneChannels(criterion=ts.Taylor(images(), lambda outputs, labels: outputs.sum() * float("nan")))(program)


def test_a_pinned_layer_names_the_operator_that_pins_it(program: ts.Program) -> None:
    with pytest.raises(ts.TersorError, match=r"head\.bias is pinned") as caught:
        ts.PruneChannels(layers=(r"head\.bias",))(program)
    assert "output keeps its shape" in str(caught.value)


def test_an_expression_that_matches_nothing(program: ts.Program) -> None:
    with pytest.raises(ts.TersorError, match="matches no parameter"):
        ts.PruneChannels(keep=("layer99",))(program)
    with pytest.raises(ts.TersorError, match="not a regular expression"):
        ts.PruneChannels(keep=("(",))


def test_a_share_that_is_none() -> None:
    with pytest.raises(ts.TersorError, match=r"\(0, 1\]"):
        ts.Macs(0)
    with pytest.raises(ts.TersorError, match="no limits"):
        ts.PruneChannels(least=0.9, most=0.1)


def test_scores_that_do_not_fit(program: ts.Program) -> None:
    @dataclass(frozen=True)
    class Wrong(ts.Criterion):
        def score(self, group: ts.Group, gathered: Any) -> Tensor:
            return torch.full((group.size,), float("nan"))

    with pytest.raises(ts.TersorError, match="finite numbers"):
        ts.PruneChannels(criterion=Wrong())(program)


def test_an_axis_that_would_become_empty(program: ts.Program) -> None:
    copy = program.copy()
    found = dimensions(copy)
    leaf = found.prunable[0]
    with pytest.raises(ts.TersorError, match="would go"):
        cut(copy, found, {leaf: torch.zeros(leaf.size, dtype=torch.bool)})
    pinned = next(axis for axis in found.leaves if axis.pins)
    with pytest.raises(ts.TersorError, match="cannot be cut"):
        cut(copy, found, {pinned: torch.zeros(pinned.size, dtype=torch.bool)})


def test_the_cost_of_an_index_is_what_goes_with_it(program: ts.Program) -> None:
    found = dimensions(program)
    costs = Costs(program, found)
    for group in groups(program, found):
        copy = program.copy()
        again = dimensions(copy)
        leaf = again.prunable[found.prunable.index(group.leaf)]
        mask = torch.ones(leaf.size, dtype=torch.bool)
        mask[0] = False
        cut(copy, again, {leaf: mask})
        cost = costs.of_index(group.leaf)
        assert cost.parameters == program.cost().parameters - copy.cost().parameters
        assert cost.macs == program.cost().macs - copy.cost().macs
        assert cost.parameter_bytes == 4 * cost.parameters


def test_nothing_to_prune() -> None:
    program = ts.trace(nn.Linear(3, 2), (torch.randn(1, 3),))
    with pytest.raises(ts.TersorError, match="nothing to prune"):
        ts.PruneChannels()(program)


# -- afterwards ------------------------------------------------------------------------------------------------------


def test_it_trains_saves_quantizes_and_lowers(program: ts.Program, tmp_path: Path) -> None:
    batches = images()
    pruned = ts.PruneChannels(ts.Macs(0.5), multiple=8)(program)
    loaded = ts.load(pruned.save(tmp_path / "pruned.tersor"))
    x = batches[0][0]
    assert torch.equal(loaded(x), pruned(x))
    tuned = ts.Finetune(batches, nn.functional.cross_entropy, epochs=1)(loaded)
    quantized = ts.PassManager([ts.Quantize(ts.INT8, calibration=[x for x, _ in batches])]).run(tuned).program
    artifact = ts.lower(quantized, "onnxruntime", tmp_path / "artifact")
    assert artifact.run(x).shape == (4, 10)
    difference = artifact.run(x) - tuned(x).detach()
    assert difference.abs().max() < 0.2 * tuned(x).abs().max()


def test_a_quantized_program_is_pruned_with_its_grids(program: ts.Program) -> None:
    x = images()[0][0]
    quantized = ts.PassManager([ts.Quantize(ts.INT8, calibration=[x])]).run(program).program
    pruned = ts.PruneChannels(ts.Macs(0.5))(quantized)
    assert pruned.cost().macs < 0.52 * program.cost().macs
    assert pruned.verify()(x).shape == (4, 10)
