"""Guesses from few points, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tersor.compression.surrogate import Surrogate, above, improvement


def bowl(points: Tensor) -> Tensor:
    return (points - 0.4).square().sum(-1) + 0.3 * points.prod(-1)


@pytest.fixture(scope="module")
def points() -> Tensor:
    return torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_what_a_normal_distribution_says_of_the_rest_given_a_part(points: Tensor) -> None:
    """By the inverse of the covariance of all points at once, which the surrogate never makes."""
    given, asked = points[:25], points[25:]
    guess = Surrogate(given, bowl(given))
    kernel, mean, scale = guess._kernel, bowl(given).mean(), bowl(given).std(correction=0)
    every = kernel(points, points) + kernel.noise * torch.eye(40, dtype=points.dtype)
    precision = torch.linalg.inv(every)[25:, 25:]  # its inverse is the covariance of the rest given the part
    expected = every[25:, :25] @ torch.linalg.inv(every[:25, :25]) @ ((bowl(given) - mean) / scale)
    found, deviation = guess(asked)
    torch.testing.assert_close(found, expected * scale + mean, rtol=1e-6, atol=1e-8)
    variance = torch.linalg.inv(precision).diagonal() * guess._variance * scale.square()
    torch.testing.assert_close(deviation.square(), variance, rtol=1e-4, atol=1e-10)


def test_it_learns_a_curved_function_and_knows_how_well(points: Tensor) -> None:
    guess = Surrogate(points[:30], bowl(points[:30]))
    found, deviation = guess(points[30:])
    error = found - bowl(points[30:])
    assert float(error.square().mean().sqrt()) < 0.15 * float(bowl(points).std())
    assert bool((error.abs() < 4 * deviation).all())


def test_one_point_and_equal_values_are_enough() -> None:
    for count in (1, 3):
        guess = Surrogate(torch.rand(count, 2, dtype=torch.float64), torch.full((count,), 7.0, dtype=torch.float64))
        found, deviation = guess(torch.rand(5, 2, dtype=torch.float64))
        torch.testing.assert_close(found, torch.full((5,), 7.0, dtype=torch.float64))
        assert bool(deviation.isfinite().all())


def test_promises_against_a_sample() -> None:
    sample = 0.8 + 0.3 * torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, deviation = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    for bound in (0.5, 0.9):
        assert math.isclose(above(mean, deviation, bound), (sample > bound).double().mean(), abs_tol=5e-3)
        assert math.isclose(improvement(mean, deviation, bound), (bound - sample).clamp(min=0).mean(), abs_tol=2e-3)
