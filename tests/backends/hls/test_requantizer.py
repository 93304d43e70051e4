"""Every form of requantization against the definition in float32, exhaustively where the range is small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.backends.hls.requantizer import Form, Requantizer, signed_bits, signed_digits
from tersor.backends.hls.requantizer_search import cheapest
from tersor.ir import requantize_forms as forms
from tersor.ir.proofs import Counterexample, Requantization


def case_of(multiplier: torch.Tensor, zero_point: int, bits: int, reach: int | torch.Tensor) -> Requantization:
    high = torch.as_tensor(reach, dtype=torch.int64).expand(multiplier.shape)
    return Requantization(multiplier, zero_point, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, -high, high)


def refuted(case: Requantization, candidate: Requantizer) -> Counterexample | None:
    return case.refute(lambda acc: torch.from_numpy(candidate(acc.numpy())))


def everywhere(case: Requantization, candidate: Requantizer) -> None:
    """The circuit on every accumulator of its range, against the definition."""
    acc = torch.arange(int(case.low.min()), int(case.high.max()) + 1).expand(case.multiplier.numel(), -1)
    inside = (acc >= case.low[:, None]) & (acc <= case.high[:, None])
    found = candidate(acc.numpy())
    assert not ((case(acc).numpy() != found) & inside.numpy()).any()


multipliers = st.floats(2.0**-13, 2.0**-1, width=32)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(multipliers, min_size=1, max_size=4),
    st.integers(2, 8),
    st.integers(-8, 7),
    st.integers(1, 20_000),
)
def test_the_chosen_circuit_is_the_definition_on_every_accumulator(
    values: list[float], bits: int, zero_point: int, reach: int
) -> None:
    case = case_of(torch.tensor(values), max(zero_point, -(1 << (bits - 1))), bits, reach)
    everywhere(case, cheapest(case))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 511), st.integers(8, 14), st.integers(-128, 127))
def test_a_multiplier_of_few_bits_is_exact_with_ties_to_even(mantissa: int, shift: int, zero_point: int) -> None:
    """What snapped scales give: acc * m is exact in float32, so the multiplier as it is serves."""
    case = case_of(torch.tensor([mantissa * 2.0**-shift]), zero_point, 8, 30_000)
    chosen = cheapest(case)
    everywhere(case, chosen)
    assert chosen.forms == {Form.MULTIPLY}
    assert chosen.multiplier_bits <= max(mantissa.bit_length() + 3, 1)


@pytest.mark.parametrize("exponent", [-6, -8, -10, -12])
@pytest.mark.parametrize("bits", [8, 4])
def test_thousands_of_channels_are_proven(exponent: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(1)
    multiplier = 2.0 ** (exponent + torch.rand(256, generator=generator))
    reach = ((1 << bits) / multiplier * (0.3 + torch.rand(256, generator=generator))).long()
    case = case_of(multiplier, 1, bits, reach)
    assert refuted(case, cheapest(case)) is None


@pytest.mark.parametrize("field", ["multiplier", "offset", "shift"])
def test_a_wrong_constant_is_refuted(field: str) -> None:
    """One more or less in any constant of any channel, unless it is as right: then it is so on every accumulator."""
    generator = torch.Generator().manual_seed(2)
    case = case_of(2.0 ** (-7 + torch.rand(24, generator=generator)), 3, 8, 18_000)
    chosen = cheapest(case)
    refutations = 0
    for channel in range(24):
        wrong = getattr(chosen, field).copy()
        wrong[channel] += 1 if field != "offset" else 1 << max(int(chosen.shift[channel]) - 2, 0)
        planted = replace(chosen, **{field: wrong})
        found = refuted(case, planted)
        if found is None:
            everywhere(case, planted)
        else:
            assert found.channel == channel
            refutations += 1
    assert refutations >= 20


def test_a_wrong_threshold_is_refuted() -> None:
    case = case_of(torch.tensor([0.01171, 0.0101]), 0, 3, 400)
    chosen = cheapest(case)
    counted = replace(chosen, form=np.full(2, Form.THRESHOLDS, np.int64))
    assert refuted(case, counted) is None
    thresholds = counted.thresholds.copy()
    thresholds[1, 3] += 1
    found = refuted(case, replace(counted, thresholds=thresholds))
    assert found is not None
    assert found.channel == 1


def test_channels_that_cannot_move_take_no_multiplier() -> None:
    case = Requantization(torch.tensor([0.3]), 5, -128, 127, torch.tensor([10]), torch.tensor([10]))
    chosen = cheapest(case)
    assert chosen.multiplier_bits == 0
    assert chosen(np.array([[10]])).tolist() == [[8]]


def test_a_grid_of_one_value_takes_no_multiplier() -> None:
    case = Requantization(torch.tensor([0.3, 0.01]), -128, -128, -128, torch.tensor([-50, 3]), torch.tensor([90, 700]))
    chosen = cheapest(case)
    everywhere(case, chosen)
    assert not chosen.multiplier.any()


@pytest.mark.parametrize("exponent", [-140, -60, -30, -12, -1, 0, 20, 60])
def test_the_float_product_in_integers(exponent: int) -> None:
    """Against numpy's float32, over the whole of int32, with multipliers that leave nothing or everything."""
    random = np.random.default_rng(3)
    acc = np.concatenate(
        [random.integers(-(2**31), 2**31, 20_000), random.integers(-(2**24), 2**24, 20_000), np.arange(-300, 300)]
    )
    multiplier = np.float32(random.uniform(1, 2) * 2.0**exponent)
    fraction, power = np.frexp(np.float64(multiplier))
    mantissa = np.int64(np.round(fraction * 2**24))
    found = forms.float_product(acc, mantissa, np.int64(np.clip(24 - power, 0, 62)))
    with np.errstate(over="ignore"):
        expected = np.round(acc.astype(np.float32) * multiplier)
    np.testing.assert_array_equal(np.clip(found, -1000, 1000), np.clip(expected, -1000, 1000))


def test_bits_and_digits_by_their_definitions() -> None:
    values = [0, 1, 2, 3, 7, 8, 255, 256, 2**24 - 1, 2**53 - 1, 2**53, 2**61 - 1, 2**61]
    assert forms.bit_length(values).tolist() == [value.bit_length() for value in values]
    assert signed_digits([0, 1, 3, 5, 7, 15, 0b10101, 255, 0b1011]).tolist() == [0, 1, 2, 2, 2, 2, 3, 2, 3]
    assert [signed_bits(*ends) for ends in ((0, 0), (-1, 0), (0, 1), (-128, 127), (-129, 0), (0, 128))] == [
        1, 1, 2, 8, 9, 9,
    ]  # fmt: skip


def test_cost_counts_digits_and_width() -> None:
    case = case_of(torch.tensor([2.0**-8, 2.0**-8 * (1 + 2.0**-4 + 2.0**-7)]), 0, 8, 32_000)
    chosen = cheapest(case)
    assert chosen.cost[0] < chosen.cost[1]
    assert chosen.adders[0] <= 2
