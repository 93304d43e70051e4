"""Ranges and scales against brute force, and properties that hold for any data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.ir.errors import CalibrationError
from tersor.ir.quantization import Observer, QuantType
from tersor.passes.quantization.observers import (
    Range,
    Statistics,
    grid,
    pair_safe_scales,
    squared_errors,
    weight_scales,
)

UINT8_LIKE = QuantType(8, symmetric=False)
SYMMETRIC = QuantType(8, symmetric=True)

kinds = st.builds(QuantType, st.integers(2, 8), st.booleans())
seeds = st.integers(0, 2**31)


def collected(observer: Observer, batches: list[Tensor]) -> Statistics:
    """Statistics of some batches."""
    statistics = Statistics(observer)
    for batch in batches:
        statistics.add(batch)
    return statistics


@given(seeds, st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_batches_does_not_matter(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(100, generator=generator) * spread ** (i / 3) for i in range(4)]
    for observer in (Observer.MIN_MAX, Observer.PERCENTILE, Observer.MSE, Observer.ENTROPY):
        forth = collected(observer, batches)
        back = collected(observer, batches[::-1])
        assert torch.equal(forth.counts, back.counts)
        assert forth.range(UINT8_LIKE, 99.0) == back.range(UINT8_LIKE, 99.0)


def test_no_value_is_lost_when_the_histogram_widens() -> None:
    batches = [torch.randn(1000) * 10.0**i for i in range(-3, 4)]
    assert collected(Observer.MSE, batches).counts.sum() == 7000


def test_min_max_and_moving_average_are_what_their_names_say() -> None:
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0])]
    assert collected(Observer.MIN_MAX, batches).range(UINT8_LIKE, 100) == Range(-3.0, 2.0)
    averaged = collected(Observer.MOVING_AVERAGE, batches).range(UINT8_LIKE, 100)
    assert averaged.low == pytest.approx(-1.2)
    assert averaged.high == pytest.approx(1.9)


def test_percentile_agrees_with_numpy_to_a_bin() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * 3 + 1
    found = collected(Observer.PERCENTILE, [values]).range(UINT8_LIKE, 99.0)
    low, high = np.quantile(values.numpy(), [0.01, 0.99])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_beats_every_other_shrink_of_the_range(bits: int) -> None:
    """The oracle computes the true error of every candidate on the data itself, without a histogram."""
    kind = QuantType(bits)
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).abs() ** 2
    found = collected(Observer.MSE, [values]).range(kind, 100)

    def error(span: Range) -> float:
        scale, zero = grid(span, kind)
        steps = torch.clamp(torch.round(values / scale) + zero, kind.qmin, kind.qmax)
        return (((steps - zero) * scale - values) ** 2).sum().item()

    best = min(error(Range(0.0, values.max().item() * share)) for share in np.linspace(0.1, 1, 91))
    assert error(found) <= best * 1.05


def test_entropy_and_mse_cut_off_outliers_that_min_max_keeps() -> None:
    values = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(2)), torch.tensor([80.0])])
    for observer in (Observer.MSE, Observer.ENTROPY, Observer.PERCENTILE):
        assert collected(observer, [values]).range(UINT8_LIKE, 99.9).high < 75
    assert collected(Observer.MIN_MAX, [values]).range(UINT8_LIKE, 99.9).high == 80


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), kinds)
@settings(max_examples=200, deadline=None)
def test_a_grid_holds_zero_exactly_and_covers_its_range(a: float, b: float, kind: QuantType) -> None:
    span = Range(min(a, b, 0.0), max(a, b, 0.0))
    scale, zero_point = grid(span, kind)
    assert scale > 0
    assert np.float32(scale) == scale
    assert kind.qmin <= zero_point <= kind.qmax
    slack = scale * (0.5 + 1e-4) + 1e-6 * max(abs(a), abs(b))
    assert (kind.qmin - zero_point) * scale <= span.low + slack
    assert (kind.qmax - zero_point) * scale >= span.high - slack


def test_masks_are_left_out_and_other_infinities_refused() -> None:
    masked = torch.tensor([1.0, 2.0, -3.4e38, -math.inf])
    assert collected(Observer.MSE, [masked]).range(UINT8_LIKE, 100).low == 0
    with pytest.raises(CalibrationError, match="NaN"):
        collected(Observer.MSE, [torch.tensor([1.0, math.nan])])
    with pytest.raises(CalibrationError, match="infinity"):
        collected(Observer.MSE, [torch.tensor([1.0, math.inf])])
    with pytest.raises(CalibrationError, match="no data"):
        Statistics(Observer.MSE).range(UINT8_LIKE, 100)


@pytest.mark.parametrize("observer", [Observer.MIN_MAX, Observer.MSE])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_weight_scales_channel_by_channel(observer: Observer, axis: int | None) -> None:
    spread = torch.logspace(-2, 2, 4).reshape(4, 1, 1, 1)
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(3)) * spread
    scales = weight_scales(weight, axis, SYMMETRIC, observer)
    channels = [weight] if axis is None else list(weight.unbind(axis))
    assert scales.shape == (() if axis is None else (len(channels),))
    for scale, channel in zip(scales.reshape(-1), channels, strict=True):
        largest = channel.abs().max() / 127
        assert scale <= largest
        if observer is Observer.MIN_MAX:
            assert scale == largest


def test_a_channel_of_zeros_gets_a_usable_scale() -> None:
    weight = torch.randn(3, 5)
    weight[1] = 0
    assert (weight_scales(weight, 0, SYMMETRIC, Observer.MIN_MAX) > 0).all()
    assert weight_scales(torch.zeros(3, 5), 0, SYMMETRIC, Observer.MIN_MAX).tolist() == [1, 1, 1]


@given(seeds, st.integers(1, 9), st.integers(1, 7), st.sampled_from([1, 3]))
@settings(max_examples=50, deadline=None)
def test_pair_safe_scales_never_let_int16_saturate(seed: int, inputs: int, outputs: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
    plain = weight_scales(weight, 0, SYMMETRIC, Observer.MIN_MAX)
    scale = pair_safe_scales(weight, plain, 0)
    assert (scale >= plain).all()
    steps = torch.round(weight / scale[:, None, None, None])
    for row in steps.permute(0, 2, 3, 1).reshape(outputs, -1).tolist():
        pairs = zip(row[0::2], row[1::2], strict=False)
        assert all(abs(255 * (first + second)) <= 2**15 for first, second in pairs)


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-30, 1e-19, 1e29])
@pytest.mark.parametrize("observer", list(Observer))
def test_values_of_any_size_get_a_usable_scale(observer: Observer, largest: float) -> None:
    values = torch.linspace(-largest, largest, 100)
    scale, zero_point = grid(collected(observer, [values, values / 3]).range(UINT8_LIKE, 99.9), UINT8_LIKE)
    assert -128 <= zero_point <= 127
    assert 2.0**-62 <= scale < 1e28
    weights = weight_scales(values.reshape(1, -1), 0, SYMMETRIC, Observer.MIN_MAX)
    assert bool(weights * scale >= torch.finfo(torch.float32).tiny)


@given(seeds, kinds, st.floats(-4, 4))
@settings(max_examples=30, deadline=None)
def test_errors_of_all_ranges_at_once_are_those_summed_bin_by_bin(seed: int, kind: QuantType, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.linspace(-8, 8, 999, dtype=torch.float64) + shift
    counts = torch.randint(0, 50, (999,), generator=generator).double()
    spans = [Range(min(-8 * share + shift, 0), max(8 * share + shift, 0)) for share in (1.0, 0.6, 0.3, 0.1)]
    for span, found in zip(spans, squared_errors(centers, counts, spans, kind), strict=True):
        scale, zero = grid(span, kind)
        ends = (kind.qmin - zero) * scale, (kind.qmax - zero) * scale
        outside = (centers - centers.clamp(*ends)).abs()
        beyond = (centers < ends[0] - scale / 2) | (centers > ends[1] + scale / 2)
        expected = (
            torch.where(beyond, outside.square(), torch.tensor(scale * scale / 12, dtype=torch.float64)) * counts
        ).sum()
        assert found == pytest.approx(float(expected), rel=1e-9)
