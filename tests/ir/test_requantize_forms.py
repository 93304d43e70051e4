"""Requantization by integers: the exact parts against Python's integers, the forms against the definition."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.ir import requantize_forms as forms
from tersor.ir.proofs import Requantization
from tersor.ir.requantize_forms import (
    FloatProduct,
    MultiplyShift,
    MultiplyShiftEven,
    ThresholdSteps,
    cheapest_form,
    float_product,
    multiply_shift,
    multiply_shift_even,
    threshold_steps,
)

REACH = 5000
grids = st.tuples(st.integers(-128, 127), st.integers(-128, -1), st.integers(0, 127))
multipliers = st.floats(2.0**-16, 2.0**6, width=32)


def case_of(
    factors: list[float], zero: int = 0, low: int = -128, high: int = 127, reach: int = REACH
) -> Requantization:
    ends = torch.full((len(factors),), reach, dtype=torch.int64)
    return Requantization(torch.tensor(factors, dtype=torch.float32), zero, low, high, -ends, ends)


def equal(case: Requantization, form: forms.RequantizeForm) -> Tensor:
    """Whether all reachable accumulators give the same, bool[channels]; the channels reach equally far."""
    every = torch.arange(int(case.low[0]), int(case.high[0]) + 1).expand(case.low.numel(), -1)
    return (case(every) == form(every)).all(1)


# -- the exact parts -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**61) + 1, 2**61 - 1), min_size=1), st.integers(-3, 70))
def test_shifts_round_half_to_even(values: list[int], shift: int) -> None:
    found = forms.shift_half_even(torch.tensor(values), torch.tensor(shift)).tolist()
    exact = [round(Fraction(value) / Fraction(2) ** shift) for value in values]
    most = 1 << 61
    assert found == [max(-most, min(most, value)) if shift < 0 else value for value in exact]


@given(st.integers(0, 2**62), st.integers(-1, 1))
def test_bit_lengths_are_exact(value: int, by: int) -> None:
    near = max(0, (1 << value.bit_length() >> 1) + by)
    assert forms.bit_length(torch.tensor([value, near])).tolist() == [value.bit_length(), near.bit_length()]


@given(st.integers(0, 2**61), st.integers(20, 60), st.integers(-2, 2))
def test_mantissas_are_rounded_as_float32_is(value: int, power: int, by: int) -> None:
    halfway = (1 << power) + (1 << max(power - 24, 0)) + by
    given_ = torch.tensor([value, halfway])
    assert forms.rounded_to_mantissa(given_).tolist() == [int(v) for v in given_.numpy().astype(np.float32)]


@given(st.floats(2.0**-120, 2.0**100, width=32))
def test_mantissa_and_shift_are_the_multiplier(factor: float) -> None:
    mantissa, shift = (int(x) for x in forms.mantissa_and_shift(torch.tensor([factor])))
    assert Fraction(mantissa) / Fraction(2) ** shift == Fraction(factor)
    assert mantissa % 2 == 1
    assert mantissa < 1 << 24


# -- forms that are always equal -------------------------------------------------------------------------------------


def extremes(case: Requantization) -> Tensor:
    """Accumulators at thresholds, around powers of two and at random over int32."""
    powers = torch.tensor([sign * ((1 << p) + by) for p in range(31) for by in (-1, 0, 1) for sign in (-1, 1)])
    noise = torch.randint(-(2**31), 2**31, (1000,), generator=torch.Generator().manual_seed(0))
    fixed = torch.cat([powers, noise, torch.tensor([-(2**31), 2**31 - 1])])
    return torch.cat([case.cases(), fixed.expand(case.multiplier.numel(), -1)], dim=1)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(2.0**-40, 2.0**40, width=32), min_size=1, max_size=3), grids)
def test_the_emulated_product_is_the_float_product(factors: list[float], grid: tuple[int, int, int]) -> None:
    case = case_of(factors, *grid, reach=(1 << 31) - 1)
    form = float_product(case)
    assert case.refute(form) is None
    assert torch.equal(case(extremes(case)), form(extremes(case)))


@settings(max_examples=60, deadline=None)
@given(st.lists(multipliers, min_size=1, max_size=3), grids)
def test_thresholds_are_the_definition(factors: list[float], grid: tuple[int, int, int]) -> None:
    case = case_of(factors, *grid)
    assert bool(equal(case, threshold_steps(case)).all())


# -- multiply and shift ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 511), st.integers(0, 16)), min_size=1, max_size=3), grids)
def test_short_mantissas_need_no_search(parts: list[tuple[int, int]], grid: tuple[int, int, int]) -> None:
    """9 bits times 15 fit float32, so nothing is rounded before the one rounding that all agree on."""
    case = case_of([mantissa * 2.0**-shift for mantissa, shift in parts], *grid, reach=(1 << 15) - 1)
    form = multiply_shift_even(case)
    assert bool((form.multiplier < 512).all())
    assert case.refute(form) is None
    assert bool(equal(case, form).all())


@settings(max_examples=60, deadline=None)
@given(st.lists(multipliers, min_size=1, max_size=3), grids)
def test_a_form_that_is_found_is_equal(factors: list[float], grid: tuple[int, int, int]) -> None:
    case = case_of(factors, *grid)
    form, found = multiply_shift(case)
    assert torch.equal(found & case.agrees(form), found)
    assert bool((equal(case, form) | ~found).all())


@settings(max_examples=80, deadline=None)
@given(st.lists(multipliers, min_size=1, max_size=2), grids, st.sampled_from([-3, -1, 1, 2]), st.integers(0, 2))
def test_wrong_constants_are_refused_exactly_where_a_scan_finds_a_difference(
    factors: list[float], grid: tuple[int, int, int], by: int, which: int
) -> None:
    case = case_of(factors, *grid)
    form, _ = multiply_shift(case)
    name = ("multiplier", "shift", "offset")[which]
    planted = getattr(form, name) + by
    wrong = replace(form, **{name: planted.clamp(min=1) if name != "offset" else planted})
    assert torch.equal(case.agrees(wrong), equal(case, wrong))
    assert (case.refute(wrong) is None) == bool(equal(case, wrong).all())


def test_most_multipliers_above_a_256th_have_a_narrow_form_and_few_below_a_4096th() -> None:
    """float32 rounds the product of a large accumulator, and no multiplier does the same to all of them."""
    generator = torch.Generator().manual_seed(0)
    shares = {}
    for power in (-6, -12):
        factors = (torch.rand(64, generator=generator) + 1) * 2.0**power
        ends = torch.full((64,), 1 << 21)
        _, found = multiply_shift(Requantization(factors, -128, -128, 127, -ends, ends))
        shares[power] = float(found.float().mean())
    assert shares[-6] > 0.9
    assert shares[-12] < 0.4


def test_the_narrowest_multiplier_is_taken() -> None:
    """Every narrower multiplier, with every shift and offset that could do, is tried and is wrong."""
    case = case_of([0.30001, 0.6123], low=-8, high=7, reach=40)
    form, found = multiply_shift(case)
    assert bool(found.all())
    for channel, width in enumerate(forms.bit_length(form.multiplier).tolist()):
        one = replace(case, multiplier=case.multiplier[channel], low=case.low[channel], high=case.high[channel])
        for multiplier in range(1, 1 << (width - 1)):
            for shift in range(width + 2):
                offsets = torch.arange(1 << shift)
                factors, shifts = (torch.full_like(offsets, value) for value in (multiplier, shift))
                tried = MultiplyShift(0, -8, 7, factors, shifts, offsets)
                every = torch.arange(-40, 41).expand(len(offsets), -1)
                assert not bool((tried(every) == one(every[:1])).all(1).any())


def test_channels_that_have_no_form_are_named() -> None:
    factors = [1 / 3, 2.0**-12 * 1.2345678]
    ends = torch.full((2,), 1 << 21)
    case = Requantization(torch.tensor(factors), -128, -128, 127, -ends, ends)
    _, found = multiply_shift(case, bits=14)
    assert found.tolist() == [True, False]


# -- the choice ------------------------------------------------------------------------------------------------------


def test_the_cheapest_that_is_proven_is_taken() -> None:
    short = case_of([3 * 2.0**-6, 5 * 2.0**-7])
    assert isinstance(cheapest_form(short), MultiplyShiftEven | MultiplyShift)
    wide = torch.full((1,), 1 << 21)
    deep = Requantization(torch.tensor([2.0**-12 * 1.2345678]), -128, -128, 127, -wide, wide)
    assert isinstance(cheapest_form(deep, bits=12), FloatProduct)
    four = replace(deep, multiplier=deep.multiplier / 16, zero_point=-8, quant_min=-8, quant_max=7)
    assert isinstance(cheapest_form(four, bits=2), ThresholdSteps)


@settings(max_examples=40, deadline=None)
@given(st.lists(multipliers, min_size=1, max_size=3), grids, st.integers(2, 24))
def test_whatever_is_taken_is_equal(factors: list[float], grid: tuple[int, int, int], bits: int) -> None:
    case = case_of(factors, *grid)
    form = cheapest_form(case, bits)
    assert bool(equal(case, form).all())
    if isinstance(form, MultiplyShift | MultiplyShiftEven):
        assert int(form.multiplier.max()) < 1 << bits


@pytest.mark.parametrize("bits", [8, 24])
def test_ties_go_where_the_definition_has_them(bits: int) -> None:
    """Half to even at 0.5, 1.5, 2.5: plain rounding up is not it."""
    case = case_of([0.5])
    form = cheapest_form(case, bits)
    assert form(torch.tensor([[1, 3, 5, -1, -3]])).tolist() == [[0, 2, 2, 0, -2]]
    half_up = MultiplyShift(0, -128, 127, torch.tensor([1]), torch.tensor([1]), torch.tensor([1]))
    assert case.refute(half_up) is not None
