"""Proofs accept what is equal and refuse what is not: wrong constants are planted, and every case is looked at."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from tersor.ir import integer_operators as ops
from tersor.ir import proofs, signature
from tersor.ir.program import Program
from tersor.ir.proofs import Counterexample, Requantization, magic_requantize
from tersor.ir.stage import Stage
from tersor.ir.structure import Structure

REACH = 4000
VALUES = torch.arange(-128, 128, dtype=torch.int8)


def case_of(
    multipliers: list[float], zero: int = 0, low: int = -128, high: int = 127, reach: int = REACH
) -> Requantization:
    factors = torch.tensor(multipliers, dtype=torch.float32)
    ends = torch.full((len(multipliers),), reach, dtype=torch.int64)
    return Requantization(factors, zero, low, high, -ends, ends)


def every(case: Requantization) -> Tensor:
    """All reachable accumulators, int64[channels, cases]; the channels reach equally far."""
    return torch.arange(int(case.low[0]), int(case.high[0]) + 1).expand(case.low.numel(), -1)


def is_real(found: Counterexample, case: Requantization, candidate: proofs.Implementation) -> bool:
    """Whether the definition and the candidate do give what the counterexample says."""
    assert found.channel is not None
    acc = torch.full((case.multiplier.numel(), 1), found.inputs[0], dtype=torch.int64)
    reachable = int(case.low[found.channel]) <= found.inputs[0] <= int(case.high[found.channel])
    values = int(case(acc)[found.channel]), int(candidate(acc)[found.channel])
    return reachable and values == (found.expected, found.found) and found.expected != found.found


multipliers = st.lists(st.floats(2.0**-9, 4.0, width=32), min_size=1, max_size=3)
grids = st.tuples(st.integers(-128, 127), st.integers(-128, -1), st.integers(0, 127))

# -- requantization --------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(multipliers, grids, st.integers(0, REACH))
def test_thresholds_are_where_a_scan_finds_them(factors: list[float], grid: tuple[int, int, int], reach: int) -> None:
    case = case_of(factors, *grid, reach=reach)
    values = case(every(case))
    steps = torch.arange(grid[1] + 1, grid[2] + 1)
    reached = values.unsqueeze(1) >= steps.reshape(1, -1, 1)
    scanned = torch.where(reached.any(2), reached.to(torch.int8).argmax(2) - reach, reach + 1)
    assert torch.equal(case.thresholds(), scanned)


@settings(max_examples=80, deadline=None)
@given(multipliers, grids, st.sampled_from([-64, -8, -1, 0, 1, 8, 64]))
def test_a_multiplier_that_is_off_is_refused_exactly_where_a_scan_finds_a_difference(
    factors: list[float], grid: tuple[int, int, int], ulps: int
) -> None:
    case = case_of(factors, *grid)
    wrong = (case.multiplier.view(torch.int32) + ulps).view(torch.float32)
    candidate = replace(case, multiplier=wrong)
    differs = (case(every(case)) != candidate(every(case))).any(1)
    assert torch.equal(case.agrees(candidate), ~differs)
    found = case.refute(candidate)
    assert (found is not None) == bool(differs.any())
    assert found is None or is_real(found, case, candidate)


@settings(max_examples=80, deadline=None)
@given(multipliers, grids, st.integers(0, 254), st.sampled_from([-1, 1]))
def test_one_threshold_that_is_off_by_one_is_found(
    factors: list[float], grid: tuple[int, int, int], place: int, by: int
) -> None:
    case = case_of(factors, *grid)
    thresholds = case.thresholds()
    place %= thresholds.shape[1]
    inside = (thresholds[0, place] > -REACH) & (thresholds[0, place] < REACH)
    planted = thresholds.clone()
    planted[0, place] += by
    assume(bool(inside) and bool((planted[0].diff() >= 0).all()))

    def candidate(acc: Tensor) -> Tensor:
        return torch.searchsorted(planted, acc.contiguous(), right=True) + grid[1]

    found = case.refute(candidate)
    assert found is not None
    assert found.channel == 0
    assert is_real(found, case, candidate)
    assert case.agrees(candidate).tolist() == [False] + [True] * (len(factors) - 1)


def test_a_wrong_zero_point_and_a_wrong_clamp_are_refused() -> None:
    case = case_of([0.01, 0.3], 3, -100, 100)
    assert case.refute(case) is None
    for wrong in (replace(case, zero_point=4), replace(case, quant_max=101), replace(case, quant_min=-101)):
        assert case.refute(wrong) is not None


def test_rounding_half_away_from_zero_is_refused_where_there_are_ties() -> None:
    def away(acc: Tensor, factor: float) -> Tensor:
        steps = acc.to(torch.float32) * factor
        return (steps.sign() * (steps.abs() + 0.5).floor()).clamp(-128, 127).to(torch.int64)

    found = case_of([0.5]).refute(partial(away, factor=0.5))
    assert found is not None
    assert abs(found.inputs[0] * 0.5) % 1 == 0.5
    assert case_of([1 / 3]).refute(partial(away, factor=1 / 3)) is None  # no accumulator is at a tie


def test_only_what_can_be_reached_counts() -> None:
    """A form that is wrong from 1001 on is right where 1000 is the most."""

    def candidate(acc: Tensor) -> Tensor:
        return torch.where(acc > 1000, 127, case_of([0.1])(acc))

    assert case_of([0.1], reach=1000).refute(candidate) is None
    assert case_of([0.1], reach=1001).refute(candidate) == Counterexample((1001,), 100, 127, 0)


def test_a_counterexample_reads_well() -> None:
    assert str(Counterexample((17,), 3, 4, 2)) == "17 of channel 2: 3 by definition, 4 here"
    assert str(Counterexample((1, -2), 3, 4)) == "1, -2: 3 by definition, 4 here"


# -- rounding by a magic constant ------------------------------------------------------------------------------------


def magic(case: Requantization) -> proofs.Implementation:
    grid = case.zero_point, case.quant_min, case.quant_max
    return lambda acc: magic_requantize(acc, case.multiplier.reshape(-1, 1), *grid)


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0**-30, 2.0**4, width=32), grids, st.integers(1, (1 << 23)))
def test_magic_rounding_is_equal_wherever_it_is_allowed(factor: float, grid: tuple[int, int, int], reach: int) -> None:
    case = case_of([factor], *grid, reach=reach)
    allowed = bool(case.allows_magic())
    assert allowed == (reach < 1 << 22 and reach * factor <= (1 << 15) - 1)
    if allowed:
        candidate = magic(case)
        assert case.refute(candidate) is None
        noise = torch.randint(-reach, reach + 1, (1, 2000))
        assert torch.equal(case(noise), candidate(noise))


def test_magic_rounding_beyond_its_bounds_is_wrong_and_not_allowed() -> None:
    far = case_of([2.0**-20], reach=1 << 23)
    steep = case_of([2.0**5], reach=1 << 20)
    for case in (far, steep):
        candidate = magic(case)
        assert not case.allows_magic().any()
        noise = torch.arange(int(case.low), int(case.high), 4097).reshape(1, -1)
        assert not torch.equal(case(noise), candidate(noise))


@pytest.mark.parametrize("constant", [proofs.MAGIC - 1, proofs.MAGIC + 1, proofs.MAGIC + 101])
def test_an_odd_magic_constant_sends_ties_the_other_way(constant: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of([0.013, 0.37, 0.5])
    assert case.refute(magic(case)) is None
    monkeypatch.setattr(proofs, "MAGIC", constant)
    assert case.refute(magic(case)) is not None


# -- all values, all pairs -------------------------------------------------------------------------------------------


def test_each_wrong_entry_of_a_table_is_found() -> None:
    table = torch.randint(-128, 128, (256,)).to(torch.int8)
    definition = partial(ops.int_lookup, table=table)
    assert proofs.refute_lookup(definition, definition) is None
    for value in range(-128, 128):
        wrong = table.clone()
        wrong[value + 128] ^= 1
        found = proofs.refute_lookup(definition, partial(ops.int_lookup, table=wrong))
        assert found == Counterexample((value,), int(table[value + 128]), int(table[value + 128]) ^ 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(-128, 127), st.integers(-128, 127))
def test_one_wrong_pair_of_65536_is_found(a: int, b: int) -> None:
    def definition(x: Tensor, y: Tensor) -> Tensor:
        return ops.int_add(x, y, 0.02, 3, 0.05, -7, 0.06, 1, -128, 127)

    def planted(x: Tensor, y: Tensor) -> Tensor:
        right = definition(x, y)
        return torch.where((x == a) & (y == b), right ^ 1, right)

    found = proofs.refute_pairs(definition, planted)
    assert found is not None
    assert found.inputs == (a, b)
    assert found.found == found.expected ^ 1
    assert proofs.refute_pairs(definition, definition) is None


def test_all_pairs_are_all_pairs() -> None:
    seen: set[tuple[int, int]] = set()

    def watch(x: Tensor, y: Tensor) -> Tensor:
        seen.update(zip(x.tolist(), y.tolist(), strict=True))
        return x

    proofs.refute_pairs(watch, watch)
    assert len(seen) == 65536


# -- from a program --------------------------------------------------------------------------------------------------


def requantized(weight: Tensor, multiplier: Tensor, low: int = -128) -> Program:
    """quantize -> int_conv -> requantize -> dequantize of one image."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    scale = graph.get_attr("scale")
    q = graph.call_function(ops.QUANTIZE, (x, scale, 0, low, 127))
    acc = graph.call_function(ops.INT_CONV, (q, graph.get_attr("weight"), None, 0, [1, 1], [0, 0], [1, 1], 1))
    y = graph.call_function(ops.REQUANTIZE, (acc, graph.get_attr("multiplier"), 5, -128, 127))
    graph.output((graph.call_function(ops.DEQUANTIZE, (y, scale, 5, None)),))
    specs = (signature.TensorSpec("x", torch.float32, (1, int(weight.shape[1]), 4, 4)),)
    nested = Structure("tuple", (Structure("leaf"),))
    tensors = {"scale": torch.tensor(0.1), "weight": weight, "multiplier": multiplier}
    made = signature.Signature(specs, nested, Structure("dict"), Structure("leaf"))
    return Program.build(graph, tensors, made, stage=Stage.INTEGER)


@pytest.mark.parametrize("each", [True, False])
def test_the_reachable_range_is_that_of_the_weights_and_of_the_grid_before(each: bool) -> None:
    weight = torch.tensor([[1, -2, 3], [0, 0, 5]]).to(torch.int8).reshape(2, 3, 1, 1)
    multiplier = torch.tensor([0.1, 0.2]).reshape(2, 1, 1) if each else torch.tensor(0.1)
    program = requantized(weight, multiplier, low=-10)
    (node,) = program.graph.find_nodes(op="call_function", target=ops.REQUANTIZE)
    case = Requantization.of(program, node)
    assert case.low.tolist() == [-1 * 10 - 2 * 127 - 3 * 10, -50]
    assert case.high.tolist() == [127 + 20 + 381, 635]
    assert case.multiplier.tolist() == pytest.approx([0.1, 0.2] if each else [0.1, 0.1])
    assert (case.zero_point, case.quant_min, case.quant_max) == (5, -128, 127)
