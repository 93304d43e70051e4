"""Sums of two grids in integers against the definition, on every pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.backends.hls import pair_sum
from tersor.backends.hls.pair_sum import PairSum, PairTable, cheapest_sum
from tersor.ir.integer_operators import int_add

VALUES = torch.arange(-128, 128, dtype=torch.int8)


def table_of(scales: tuple[float, float, float], zeros: tuple[int, int, int]) -> PairTable:
    a, b = torch.meshgrid(VALUES, VALUES, indexing="ij")
    q = int_add(a, b, scales[0], zeros[0], scales[1], zeros[1], scales[2], zeros[2], -128, 127)
    return PairTable(-128, -128, q.to(torch.int64).numpy(), zeros[2], -128, 127, zeros[:2])


def chosen_for(scales: tuple[float, float, float], zeros: tuple[int, int, int]) -> PairSum:
    table = table_of(scales, zeros)
    chosen = cheapest_sum(table, scales[0] / scales[2], scales[1] / scales[2])
    a, b, q = table.pairs()
    np.testing.assert_array_equal(chosen(a, b), q)
    return chosen


scale = st.floats(2.0**-9, 2.0**-4, width=32)
zero = st.integers(-128, 127)


@settings(max_examples=8, deadline=None)
@given(st.tuples(scale, scale, scale), st.tuples(zero, zero, zero), st.booleans())
def test_every_pair_is_right(scales: tuple[float, float, float], zeros: tuple[int, int, int], subtract: bool) -> None:
    chosen_for((scales[0], -scales[1] if subtract else scales[1], scales[2]), zeros)


def test_ties_go_to_even_where_scales_are_powers_of_two() -> None:
    chosen = chosen_for((0.5, 0.25, 1.0), (0, 0, 0))
    assert chosen.even
    assert chosen.exceptions == ()
    assert chosen.shift <= 4


@pytest.mark.parametrize("zeros", [(5, -9, 3), (-128, 127, -128)])
def test_ties_go_to_even_wherever_the_zero_points_are(zeros: tuple[int, int, int]) -> None:
    chosen = chosen_for((0.5, 0.25, 1.0), zeros)
    assert chosen.even
    assert chosen.shift <= 4


def test_a_few_pairs_that_float32_rounds_another_way_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_sum, "_NUDGES", ())
    chosen = chosen_for((0.011, 0.02, 0.025), (3, -7, 9))
    assert chosen.table is None
    monkeypatch.setattr(pair_sum, "_SHIFTS", range(9, 10))
    monkeypatch.setattr(pair_sum, "_MOST_EXCEPTIONS", 1 << 16)
    assert chosen_for((0.011, 0.02, 0.025), (3, -7, 9)).exceptions


def test_an_operator_that_is_no_sum_is_a_table() -> None:
    random = np.random.default_rng(0).integers(-128, 128, (256, 256))
    table = PairTable(-128, -128, random, 0, -128, 127)
    chosen = cheapest_sum(table, 0.5, 0.5)
    assert chosen.table is table
    np.testing.assert_array_equal(chosen(*table.pairs()[:2]), random.reshape(-1))


@pytest.mark.parametrize("part", ["multiplier_a", "multiplier_b", "offset"])
def test_a_wrong_constant_shows(part: str) -> None:
    table = table_of((0.011, 0.02, 0.025), (3, -7, 9))
    chosen = cheapest_sum(table, 0.011 / 0.025, 0.02 / 0.025)
    values = {**chosen.__dict__, part: getattr(chosen, part) + (1 << max(chosen.shift - 4, 0))}
    a, b, q = table.pairs()
    assert (PairSum(**values)(a, b) != q).any()
