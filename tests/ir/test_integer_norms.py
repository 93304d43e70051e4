"""Integer softmax and normalization: the errors that their definition states, against float64, and exact arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.ir import integer_norms as norms
from tersor.ir.integer_norms import INT_NORMALIZE, INT_SOFTMAX

SCALES = [2.0**-40, 1e-4, 0.01, 1 / 3, 1.0, 20.0]
LENGTHS = [1, 2, 3, 7, 64, 4096]


def rows(length: int, seed: int = 0) -> Tensor:
    """int8[rows, length]: random at several widths, constant, one outlier up or down, extremes, a staircase."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randint(-128, 128, (20, length), generator=generator)
    narrow = torch.randint(-2, 3, (20, length), generator=generator)
    constant = torch.tensor([-128, -1, 0, 127]).unsqueeze(1).expand(4, length)
    outliers = constant.clone()
    outliers[:, 0] = torch.tensor([-127, 127, -128, -128])
    stairs = (torch.arange(length) % 256 - 128).unsqueeze(0)
    return torch.cat([wide, narrow, constant, outliers, stairs]).to(torch.int8)


# -- softmax ---------------------------------------------------------------------------------------------------------


def softmax_steps(x: Tensor, scale: float, output: float) -> Tensor:
    """The real softmax, in steps of the output's scale."""
    return torch.softmax(x.double() * scale, -1) / output


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("output", [1 / 256, 1 / 255, 0.001, 2.0**-16])
def test_softmax_is_within_its_stated_error(length: int, scale: float, output: float) -> None:
    x = rows(length)
    numerator = norms.softmax_numerator(output)
    found = INT_SOFTMAX(x, norms.exponential_table(scale), -1, numerator, -128, -128, 127)
    exact = softmax_steps(x, scale, output)
    bound = 0.5 + length * 2.0**-21 / output + 2.0**-24
    reached = (found.double() + 128 - exact).abs() - (exact - 255).clamp(min=0)  # what saturates is as far off as it is
    assert float(reached.max()) <= bound


def test_softmax_saturates_and_never_wraps() -> None:
    x = torch.tensor([[127, -128, -128]], dtype=torch.int8)
    found = INT_SOFTMAX(x, norms.exponential_table(1.0), -1, norms.softmax_numerator(2.0**-16), 0, -128, 127)
    assert found.tolist() == [[127, 0, 0]]


@pytest.mark.parametrize("length", [2, 7, 64])
def test_hidden_values_are_left_out_of_softmax(length: int) -> None:
    """As the softmax of the rest alone; where nothing is left, zero."""
    x, scale, output = rows(length), 0.05, 1 / 256
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    hidden[0], hidden[1] = True, False
    hidden[2, x[2].argmax()] = True
    rest = norms.exponential_table(scale), -1, norms.softmax_numerator(output), -100, -128, 127
    found = INT_SOFTMAX(x, *rest, hidden)
    for values, mask, result in zip(x, hidden, found, strict=True):
        assert bool((result[mask] == -100).all())
        if not bool(mask.all()):
            assert torch.equal(result[~mask], INT_SOFTMAX(values[~mask], *rest))
    assert torch.equal(INT_SOFTMAX(x, *rest, torch.zeros(length, dtype=torch.bool)), INT_SOFTMAX(x, *rest))


def test_softmax_goes_along_any_dimension() -> None:
    x = rows(12)[:24].reshape(2, 3, 4, 12)
    rest = norms.exponential_table(0.1), norms.softmax_numerator(1 / 256), -128, -128, 127
    for dim in range(-4, 4):
        moved = INT_SOFTMAX(x.movedim(dim, -1), rest[0], -1, *rest[1:]).movedim(-1, dim)
        assert torch.equal(INT_SOFTMAX(x, rest[0], dim, *rest[1:]), moved)


def test_softmax_in_python_integers() -> None:
    """The stated formula, with integers of any size."""
    scale, output, zero_point = 0.037, 1 / 250, -5
    table = [round(2**20 * math.exp(-k * scale)) for k in range(256)]
    numerator = round(2**46 / output)
    found = INT_SOFTMAX(rows(40), norms.exponential_table(scale), -1, numerator, zero_point, -100, 90)
    for row, result in zip(rows(40).tolist(), found.tolist(), strict=True):
        terms = [table[max(row) - q] for q in row]
        r = numerator // sum(terms)
        assert result == [min(max(((t * r + 2**45) >> 46) + zero_point, -100), 90) for t in terms]


@given(st.floats(2.0**-60, 2.0**10))
@settings(max_examples=50, deadline=None)
def test_exponentials_start_at_one_and_fall(scale: float) -> None:
    table = norms.exponential_table(scale)
    assert int(table[0]) == 1 << 20
    assert bool((table[1:] <= table[:-1]).all())
    assert bool((table >= 0).all())


# -- layer norm and RMS norm -----------------------------------------------------------------------------------------


def normalized(x: Tensor, scale: float, zero_point: int, eps: float, center: bool) -> Tensor:
    """The real normalized value times 2**12; 0 / 0 is 0. Centred in integers, or float64 leaves noise in a flat row."""
    values = (x.long() - zero_point) * x.shape[-1]
    values = values - values.sum(-1, keepdim=True) // x.shape[-1] if center else values
    exact = values.double() / x.shape[-1] * scale
    root = (exact.square().mean(-1, keepdim=True) + eps).sqrt()
    return (exact / root).nan_to_num() * 4096


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1e-2])
@pytest.mark.parametrize("center", [True, False])
def test_normalization_is_within_its_stated_error(length: int, scale: float, eps: float, center: bool) -> None:
    epsilon = norms.normalization_epsilon(eps, length, scale)
    if epsilon >= norms.LARGEST_EPSILON:
        epsilon, eps = norms.LARGEST_EPSILON - 1, (norms.LARGEST_EPSILON - 1) * scale**2 / length**2 / 2**16
    for zero_point in (0, -128, 100):
        x = rows(length)
        found = INT_NORMALIZE(x, None, None, zero_point, 1, epsilon, center)
        exact = normalized(x, scale, zero_point, eps, center)
        assert bool(((found - exact).abs() <= 0.5 + exact.abs() * 2.0**-8 + 1e-6).all())


@pytest.mark.parametrize("center", [True, False])
def test_the_root_takes_most_of_its_error_where_a_row_hardly_varies(center: bool) -> None:
    """The stated error is that of a row which hardly varies; a row of noise stays far below it."""
    shares = []
    for x in (torch.tensor([[0, 1]], dtype=torch.int8), rows(64)[:20]):
        exact = normalized(x, 1.0, 0, 0.0, center)
        found = INT_NORMALIZE(x, None, None, 0, 1, 0, center)
        shares.append(float(((found - exact).abs() - 0.5).clamp(min=0).div(exact.abs().clamp(min=1)).max()))
    assert shares[0] <= 2.0**-8
    assert shares[1] < 2.0**-14


def test_normalization_in_python_integers() -> None:
    """The stated formula, with integers of any size, weight and bias and several dimensions included."""
    x = rows(24)[:48].reshape(-1, 4, 6)
    weight = torch.randint(-2047, 2048, (4, 6)).to(torch.int32)
    bias = torch.randint(-(2**29), 2**29, (4, 6)).to(torch.int32)
    for center in (True, False):
        found = INT_NORMALIZE(x, weight, bias, -7, 2, 12345, center)
        for image, result in zip(x.flatten(1).tolist(), found.flatten(1).tolist(), strict=True):
            d, n = [q + 7 for q in image], len(image)
            total = sum(d) if center else 0
            root = max(1, math.isqrt(((n * sum(v * v for v in d) - total**2) << 16) + 12345))
            t = [((n * v - total) * (2**48 // root) + 2**27) >> 28 for v in d]
            scaled = zip(t, weight.flatten().tolist(), bias.flatten().tolist(), strict=True)
            assert result == [v * w + b for v, w, b in scaled]


def test_the_longest_rows_stay_within_int64() -> None:
    for length in (1 << 14, norms.LONGEST_ROW):
        x = torch.full((2, length), 127, dtype=torch.int8)
        x[0, 1::2], x[1, 0] = -128, -128
        found = INT_NORMALIZE(x, None, None, -128, 1, norms.LARGEST_EPSILON - 1, True)
        epsilon = (norms.LARGEST_EPSILON - 1) / length**2 / 4 ** norms.root_bits(length)
        exact = normalized(x, 1.0, -128, epsilon, True)
        assert bool(((found - exact).abs() <= 0.5 + exact.abs() * 2.0**-8).all())


@pytest.mark.parametrize("length", [norms.LONGEST_ROW // 16 + 1, norms.LONGEST_ROW // 4, norms.LONGEST_ROW])
@pytest.mark.parametrize("center", [True, False])
def test_long_rows_have_fewer_bits_of_the_root_and_the_same_error(length: int, center: bool) -> None:
    """Of noise, of extremes, and of one value that differs, for which the root is least."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (4, length), generator=generator, dtype=torch.int8)
    x[1], x[2], x[3] = 5, -128, 127
    x[1, 7], x[2, ::2] = 6, 127
    for zero_point in (5, -128):
        found = INT_NORMALIZE(x, None, None, zero_point, 1, 0, center)
        exact = normalized(x, 1.0, zero_point, 0.0, center)
        assert bool(((found - exact).abs() <= 0.5 + exact.abs() * 2.0**-8 + 1e-6).all())


# -- the square root -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=50))
@settings(max_examples=200, deadline=None)
def test_roots_are_exact_beside_squares(bases: list[int]) -> None:
    values = [v for base in bases for v in (base**2 - 1, base**2, base**2 + 1, base**2 + 2 * base) if 0 <= v <= 2**62]
    assert norms.integer_root(torch.tensor(values, dtype=torch.int64)).tolist() == [math.isqrt(v) for v in values]


def test_roots_of_small_and_of_the_greatest_values() -> None:
    values = torch.cat([torch.arange(100_000), torch.arange(2**62 - 1000, 2**62 + 1)])
    assert norms.integer_root(values).tolist() == [math.isqrt(v) for v in values.tolist()]
