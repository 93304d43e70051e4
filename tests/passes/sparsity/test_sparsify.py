"""Sparsity: masks against enumeration, SparseGPT against the formula it comes from, promises that hold to the end."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tersor as ts
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.sparsity import NM, Block, Pattern, Unstructured, mask_of
from tersor.passes.sparsity.layers import layers, second_moments
from tersor.passes.sparsity.optimal_update import optimal_update
from tersor.passes.sparsity.patterns import as_matrix, as_weight, keep_mask


class Net(nn.Module):
    """Plain, strided, grouped and dilated convolutions, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 16, 3, dilation=2, padding=2, groups=2)
        self.head = nn.Linear(256, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        logits: Tensor = self.head(torch.relu(self.second(x)).flatten(1))
        return logits


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 4, 8, 8, generator=generator), torch.randint(0, 12, (8,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def program() -> ts.Program:
    torch.manual_seed(0)
    return ts.trace(Net().eval(), (torch.randn(8, 4, 8, 8),))


PATTERNS = [
    Unstructured(0.3),
    NM(2, 4),
    NM(1, 4),
    *(Block(rows, columns, 0.5) for rows, columns in ((1, 4), (4, 1), (2, 4), (4, 4), (4, 8))),
]
LOSS = nn.functional.cross_entropy
CRITERIA = [ts.WeightMagnitude(), ts.WeightGradient(batches(), LOSS), ts.Wanda(batches()), ts.SparseGPT(batches())]


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_every_pattern_with_every_criterion_is_as_promised(
    program: ts.Program, pattern: Pattern, criterion: ts.WeightCriterion
) -> None:
    sparse = ts.Sparsify(pattern, criterion)(program)
    assert sparse.sparsity == dict.fromkeys(["first.weight", "second.weight", "head.weight"], pattern)
    for name in sparse.sparsity:
        assert pattern.violation(sparse.tensor(name)) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 4)]))
def test_n_of_m_keeps_the_largest_sum_of_all_choices(seed: int, numbers: tuple[int, int]) -> None:
    n, m = numbers
    scores = torch.rand(3, 2 * m, generator=torch.Generator().manual_seed(seed))
    mask = keep_mask(NM(n, m), scores)
    for row, start in itertools.product(range(3), (0, m)):
        group = scores[row, start : start + m].tolist()
        best = max(sum(choice) for choice in itertools.combinations(group, n))
        assert float((scores * mask)[row, start : start + m].sum()) == pytest.approx(best)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_blocks_keep_the_largest_sum_of_all_choices(seed: int) -> None:
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed))
    mask = keep_mask(Block(2, 3, 0.5), scores)
    sums = [float(scores[r : r + 2, c : c + 3].sum()) for r in (0, 2) for c in (0, 3)]
    best = max(sum(choice) for choice in itertools.combinations(sums, 2))
    assert float((scores * mask).sum()) == pytest.approx(best)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 3, 2)])
def test_matrices_go_there_and_back(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    assert torch.equal(as_weight(as_matrix(weight), weight.shape), weight)


# -- what layers read ------------------------------------------------------------------------------------------------


def test_patches_times_the_weight_are_the_convolution(program: ts.Program) -> None:
    """The rows that moments are taken of are the ones that the operator multiplies with."""
    x = batches()[0][0]
    inputs = {"first.weight": x, "second.weight": torch.randn(2, 8, 4, 4), "head.weight": torch.randn(3, 256)}
    for name, given_x in inputs.items():
        layer = layers(program)[name]
        (node,) = layer.nodes
        rows = layer.rows(node, given_x)
        weights = as_matrix(layer.weight).chunk(len(rows))
        ours = torch.cat([part @ weight.T for part, weight in zip(rows, weights, strict=True)], dim=1)
        args = [given_x, layer.weight, None, *node.args[3:]]
        expected = node.target(*args)  # type: ignore[operator]
        expected = expected.movedim(1, -1).reshape(-1, expected.shape[1])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_second_moments_are_those_of_all_rows(program: ts.Program) -> None:
    data = batches()
    layer = layers(program)["first.weight"]
    rows = torch.cat([layer.rows(layer.nodes[0], x)[0] for x, _ in data]).double()
    full = second_moments(program, {"first.weight": layer}, data, full=True)["first.weight"][0]
    torch.testing.assert_close(full, rows.T @ rows / len(rows))
    diagonal = second_moments(program, {"first.weight": layer}, data, full=False)["first.weight"][0]
    torch.testing.assert_close(diagonal, rows.square().mean(0))


# -- SparseGPT -------------------------------------------------------------------------------------------------------


def surgeon(matrix: Tensor, moments: Tensor, pattern: Pattern, width: int, damping: float) -> Tensor:
    """Optimal brain surgeon, column by column, with the inverse Hessian of what remains computed anew each time."""
    weights = matrix.double().clone()
    rows = pattern.rows if isinstance(pattern, Block) else 1
    taken = 0
    hessian = moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    columns = len(moments)
    for start in range(0, columns, width):
        inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(start, start + width)]
        pivots = torch.stack([inverse[0, 0] for inverse in inverses])
        due = pattern
        if isinstance(pattern, Unstructured | Block):
            units = (6 // rows) * (width if rows == 1 else 1)
            count = int(pattern.density * units * (start // width + 1)) - taken
            due = dataclasses.replace(pattern, density=max(count, 1e-6) / units)
            taken += count
        mask = keep_mask(due, weights[:, start : start + width].square() / pivots)
        for place, inverse in enumerate(inverses):
            j = start + place
            for row in range(len(weights)):
                if not mask[row, place]:
                    weights[row, j:] -= weights[row, j].clone() / inverse[0, 0] * inverse[0]
                    weights[row, j] = 0
    return weights


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5), Block(2, 4, 0.5)], ids=str)
def test_the_sweep_is_optimal_brain_surgeon(pattern: Pattern) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, generator=generator, dtype=torch.float64) @ torch.randn(
        12, 12, generator=generator, dtype=torch.float64
    )
    matrix = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    moments = rows.T @ rows / len(rows)
    found = optimal_update(matrix, moments, pattern, block=4, damping=0.01)
    torch.testing.assert_close(found, surgeon(matrix, moments, pattern, 4, 0.01))
    plain = matrix * (found != 0)
    assert ((found - matrix) @ rows.T).norm() < ((plain - matrix) @ rows.T).norm()


# -- allocation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "allocation",
    [ts.Uniform(), ts.ErdosRenyiKernel(), ts.BySensitivity(batches(), LOSS)],
    ids=lambda allocation: type(allocation).__name__,
)
@pytest.mark.parametrize("density", [0.1, 0.4, 0.8])
def test_allocations_meet_the_global_density(program: ts.Program, allocation: Any, density: float) -> None:
    sparse = ts.Sparsify(Unstructured(density), allocation=allocation)(program)
    kept = sum(int(torch.count_nonzero(sparse.tensor(name))) for name in sparse.sparsity)
    total = sum(sparse.tensor(name).numel() for name in sparse.sparsity)
    assert kept / total == pytest.approx(density, rel=0.02)


def test_rules_choose_by_name(program: ts.Program) -> None:
    rules = ((r"^head", None), (r"second", NM(1, 4)))
    sparse = ts.Sparsify(NM(2, 4), rules=rules)(program)
    assert sparse.sparsity == {"first.weight": NM(2, 4), "second.weight": NM(1, 4)}
    assert torch.equal(sparse.tensor("head.weight"), program.tensor("head.weight"))


# -- the zeros stay --------------------------------------------------------------------------------------------------


def test_zeros_stay_zero_through_tuning_quantization_and_the_file(program: ts.Program, tmp_path: Path) -> None:
    data = batches()
    sparse = ts.Sparsify(NM(2, 4))(program)
    zeros = {name: sparse.tensor(name) == 0 for name in sparse.sparsity}
    tuned = ts.Finetune(data, LOSS, epochs=2)(sparse)
    quantized = ts.PassManager([ts.Quantize(ts.INT8, calibration=[x for x, _ in data])]).run(tuned).program
    trained = ts.TrainQuantized(data, LOSS, epochs=1)(quantized)
    loaded = ts.load(trained.save(tmp_path / "sparse.tersor"))
    for stage in (tuned, quantized, trained, loaded):
        for name, zero in zeros.items():
            assert bool((stage.tensor(name)[zero] == 0).all())
            assert stage.sparsity[name] == NM(2, 4)
    changed = [not torch.equal(tuned.tensor(name), sparse.tensor(name)) for name in zeros]
    assert all(changed), "the others trained"
    nodes = loaded.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    scales = [node for node in nodes if node.args[0].op == "get_attr"]
    assert scales, "weights are on grids"
    for node in scales:
        weight = loaded.tensor(str(node.args[0].target))
        rounded = node.target(weight, *(loaded.tensor(str(arg.target)) for arg in node.args[1:3]), *node.args[3:])
        assert bool((rounded[weight == 0] == 0).all())


def test_masks_of_entries() -> None:
    weight = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert mask_of(Unstructured(0.5), weight).tolist() == [[False, True], [True, False]]
    from tersor.ir.sparsity import Channel

    assert mask_of(Channel((0,)), weight).tolist() == [[False, False], [True, True]]


# -- moving zeros, and moving channels -------------------------------------------------------------------------------


def test_regrowth_keeps_the_density_and_moves_values(program: ts.Program) -> None:
    data = batches()
    sparse = ts.Sparsify(Unstructured(0.2))(program)
    moved = ts.Regrow(data, LOSS, tune=ts.Finetune(data, LOSS, epochs=1), rounds=2)(sparse)
    for name in sparse.sparsity:
        before, after = sparse.tensor(name) != 0, moved.tensor(name) != 0
        assert int(after.sum()) <= int(before.sum())
        assert int(after.sum()) > 0.9 * int(before.sum())
        assert int((before & ~after).sum()) > 0


def test_regrowth_grows_where_the_gradient_is_largest() -> None:
    torch.manual_seed(0)
    program = ts.trace(nn.Linear(8, 4, bias=False), (torch.randn(16, 8),))
    sparse = ts.Sparsify(Unstructured(0.25))(program)
    x, y = torch.randn(16, 8), torch.randn(16, 4)
    moved = ts.Regrow([(x, y)], nn.functional.mse_loss, rounds=1, share=0.5)(sparse)
    weight = sparse.tensor("weight").detach().clone().requires_grad_()
    nn.functional.mse_loss(x @ weight.T, y).backward()
    assert weight.grad is not None
    gradient = torch.where(weight == 0, weight.grad.abs(), -1.0)
    largest = set(gradient.flatten().topk(4).indices.tolist())
    grown = ((moved.tensor("weight") != 0) & (sparse.tensor("weight") == 0)).flatten().nonzero().flatten().tolist()
    assert set(grown) == largest


@pytest.mark.parametrize("pattern", [NM(2, 4), Block(2, 4, 0.5)], ids=str)
def test_permuted_channels_compute_the_same_and_keep_more(pattern: Pattern) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    program = ts.trace(model, (x,))
    permuted = ts.PermuteChannels(pattern)(program)
    torch.testing.assert_close(permuted(x), program(x), rtol=1e-4, atol=1e-5)

    def held(given_program: ts.Program) -> float:
        sparse = ts.Sparsify(pattern)(given_program)
        return sum(float(sparse.tensor(name).detach().abs().sum()) for name in sparse.sparsity)

    assert held(permuted) > 1.005 * held(program)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_stays_dense_and_is_noted() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    report = ts.PassManager([ts.Sparsify(NM(2, 4))]).run(ts.trace(model, (torch.randn(1, 6),))).report
    assert any("6 inputs are not a multiple of 4" in note for note in report.rows[-1].notes)


def test_errors(program: ts.Program) -> None:
    with pytest.raises(ts.TersorError, match="Wanda needs data"):
        ts.Sparsify(NM(2, 4), ts.Wanda())(program)
    with pytest.raises(ts.TersorError, match="the data is empty"):
        ts.Sparsify(NM(2, 4), ts.SparseGPT([]))(program)
    with pytest.raises(ts.TersorError, match="matches no weight"):
        ts.Sparsify(NM(2, 4), rules=(("nothing", None),))(program)
    with pytest.raises(ts.TersorError, match="no weight can be sparse"):
        ts.Sparsify(NM(2, 4), rules=((".", None),))(program)
    with pytest.raises(ts.TersorError, match="would be zero"):
        ts.Sparsify(Unstructured(1e-6))(program)
    with pytest.raises(ts.TersorError, match="does not depend on the order"):
        ts.PermuteChannels(Unstructured(0.5))
    with pytest.raises(ts.TersorError, match="no weight is sparse"):
        ts.Regrow(batches(), LOSS)(program)
    with pytest.raises(ts.TersorError, match="not finite"):
        ts.Sparsify(NM(2, 4), ts.Wanda([torch.full((8, 4, 8, 8), float("nan"))]))(program)


@pytest.mark.parametrize("pattern", [Block(2, 8, 0.5), Block(4, 4, 0.3), Block(1, 4, 0.5), Unstructured(0.4)])
def test_blocks_that_reach_over_groups_keep_their_promise(pattern: Pattern) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 24, 8, 8)
    depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
    program = ts.trace(nn.Sequential(depthwise, nn.ReLU(), nn.Conv2d(24, 6, 3, groups=2)).eval(), (x,))
    sparse = ts.PassManager([ts.Sparsify(pattern, ts.SparseGPT([x]))]).run(program).program
    for name in ("0.weight", "2.weight"):
        assert pattern.violation(sparse.tensor(name)) is None
        assert sparse.tensor(name).any()
