"""Requantization by integers: the exact parts against Python's integers, the forms against the definition."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.ir import requantize_forms as forms
from tersor.ir.proofs import Implementation, Requantization
from tersor.ir.requantize_forms import MultiplyShiftEven

REACH = 5000
grids = st.tuples(st.integers(-128, 127), st.integers(-128, -1), st.integers(0, 127))
multipliers = st.floats(2.0**-16, 2.0**6, width=32)


def case_of(
    factors: list[float], zero: int = 0, low: int = -128, high: int = 127, reach: int = REACH
) -> Requantization:
    ends = torch.full((len(factors),), reach, dtype=torch.int64)
    return Requantization(torch.tensor(factors, dtype=torch.float32), zero, low, high, -ends, ends)


def equal(case: Requantization, form: Implementation) -> Tensor:
    """Whether all reachable accumulators give the same, bool[channels]; the channels reach equally far."""
    every = torch.arange(int(case.low[0]), int(case.high[0]) + 1).expand(case.low.numel(), -1)
    return (case(every) == form(every)).all(1)


def plain(multiplier: int, shift: int, offset: int) -> Implementation:
    """(acc * multiplier + offset) >> shift on a grid of 8 bits."""
    constants = (np.array(value) for value in (multiplier, offset, shift, False))
    given = tuple(constants)
    return lambda acc: torch.from_numpy(np.clip(forms.multiply_shift(acc.numpy(), *given), -128, 127))


# -- the exact parts -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**61) + 1, 2**61 - 1), min_size=1), st.integers(-3, 70))
def test_shifts_round_half_to_even(values: list[int], shift: int) -> None:
    found = forms.shift_half_even(np.array(values), np.array(shift)).tolist()
    exact = [round(Fraction(value) / Fraction(2) ** shift) for value in values]
    most = 1 << 61
    assert found == [max(-most, min(most, value)) if shift < 0 else value for value in exact]


@given(st.integers(0, 2**62), st.integers(-1, 1))
def test_bit_lengths_are_exact(value: int, by: int) -> None:
    near = max(0, (1 << value.bit_length() >> 1) + by)
    assert forms.bit_length([value, near]).tolist() == [value.bit_length(), near.bit_length()]


@given(st.floats(2.0**-120, 2.0**100, width=32))
def test_mantissa_and_shift_are_the_multiplier(factor: float) -> None:
    mantissa, shift = (int(x[0]) for x in forms.mantissa_and_shift(torch.tensor([factor])))
    assert Fraction(mantissa) / Fraction(2) ** shift == Fraction(factor)
    assert mantissa % 2 == 1
    assert mantissa < 1 << 24


# -- multiply and shift ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 511), st.integers(0, 16)), min_size=1, max_size=2), grids)
def test_short_mantissas_need_no_search(parts: list[tuple[int, int]], grid: tuple[int, int, int]) -> None:
    """9 bits times 15 fit float32, so nothing is rounded before the one rounding that all agree on."""
    case = case_of([mantissa * 2.0**-shift for mantissa, shift in parts], *grid, reach=(1 << 15) - 1)
    form = MultiplyShiftEven.of(case)
    assert (form.multiplier < 512).all()
    assert case.refute(form) is None
    assert bool(equal(case, form).all())


@settings(max_examples=100, deadline=None)
@given(st.lists(multipliers, min_size=1, max_size=3), grids)
def test_long_mantissas_are_proven_exactly_where_a_scan_finds_no_difference(
    factors: list[float], grid: tuple[int, int, int]
) -> None:
    case = case_of(factors, *grid)
    form = MultiplyShiftEven.of(case)
    assert torch.equal(case.agrees(form), equal(case, form))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 511), st.integers(4, 12)), min_size=1, max_size=2), grids,
    st.sampled_from([-3, -1, 1, 2]), st.booleans(),
)  # fmt: skip
def test_wrong_constants_are_refused_exactly_where_a_scan_finds_a_difference(
    parts: list[tuple[int, int]], grid: tuple[int, int, int], by: int, shifted: bool
) -> None:
    case = case_of([mantissa * 2.0**-shift for mantissa, shift in parts], *grid)
    form = MultiplyShiftEven.of(case)
    wrong = replace(form, shift=form.shift + by) if shifted else replace(form, multiplier=np.abs(form.multiplier + by))
    assert torch.equal(case.agrees(wrong), equal(case, wrong))
    assert (case.refute(wrong) is None) == bool(equal(case, wrong).all())


def test_a_shift_that_rounds_up_is_equal_where_there_are_no_ties() -> None:
    case, half = case_of([0.2871], reach=2000), 1 << 23
    for offset, right in ((half, True), (half + 1000, True), (half - 10**6, False), (half + 10**6, False)):
        form = plain(round(0.2871 * 2**24), 24, offset)
        assert bool(case.agrees(form)) == bool(equal(case, form)) == right


def test_ties_go_where_the_definition_has_them() -> None:
    """Half to even at 0.5, 1.5, 2.5: rounding up is not it."""
    case = case_of([0.5])
    assert MultiplyShiftEven.of(case)(torch.tensor([[1, 3, 5, -1, -3]])).tolist() == [[0, 2, 2, 0, -2]]
    assert case.refute(plain(1, 1, 1)) is not None
