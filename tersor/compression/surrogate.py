"""A guess at a quantity from few points by a Gaussian process (Rasmussen and Williams 2006, chapters 2 and 5)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

_LENGTHS = (0.15, 0.3, 0.6, 1.2)
_SLOPES = (0.3, 1.0, 3.0)
_NOISES = (1e-4, 1e-2)
_TINY = 1e-12


@dataclass(frozen=True)
class Kernel:
    """How alike values at two points are: a plane, a curve along each axis, and what axes do together.

    length: over which curves bend, in the unit of points. slope: how much is expected of the plane. noise: of a value.
    """

    length: float
    slope: float
    noise: float

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """float64[n, m] of points float64[n, axes] and float64[m, axes]."""
        apart = ((ours[:, None] - theirs[None]) / self.length) ** 2
        alone = torch.exp(-apart / 2).mean(-1)
        together = torch.exp(-apart.sum(-1) / 8)  # over twice the length
        return alone + together + self.slope * (1 + (ours - 0.5) @ (theirs - 0.5).T)

    def own(self, points: Tensor) -> Tensor:
        """Of each point with itself, noise included."""
        return 2 + self.slope * (1 + ((points - 0.5) ** 2).sum(-1)) + self.noise


@dataclass
class Surrogate:
    """points: float64[n, axes], each between 0 and 1. values: float64[n]. n is at least 1."""

    points: Tensor
    values: Tensor
    _likelihood: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        self._mean = self.values.mean()
        self._scale = (self.values - self._mean).square().mean().sqrt().clamp(min=_TINY)
        for kernel in itertools.starmap(Kernel, itertools.product(_LENGTHS, _SLOPES, _NOISES)):
            self._consider(kernel, (self.values - self._mean) / self._scale)

    def _consider(self, kernel: Kernel, values: Tensor) -> None:
        """Take a kernel that makes the values likelier than those before did, at the best scale for it."""
        count = len(values)
        inside = kernel(self.points, self.points) + kernel.noise * torch.eye(count, dtype=values.dtype)
        factor, failed = torch.linalg.cholesky_ex(inside)
        if failed:
            return
        weights = torch.cholesky_solve(values[:, None], factor)[:, 0]
        variance = max(float(values @ weights) / count, _TINY)
        likelihood = -count / 2 * math.log(variance) - float(factor.diagonal().log().sum())
        if likelihood > self._likelihood:
            self._likelihood, self._kernel = likelihood, kernel
            self._factor, self._weights, self._variance = factor, weights, variance

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """What values are expected at points float64[m, axes], and their standard deviation."""
        across = self._kernel(points, self.points)
        known = torch.linalg.solve_triangular(self._factor, across.T, upper=False)
        variance = (self._kernel.own(points) - known.square().sum(0)).clamp(min=1e-9) * self._variance
        return across @ self._weights * self._scale + self._mean, variance.sqrt() * self._scale


def above(mean: Tensor, deviation: Tensor, floor: float) -> Tensor:
    """How likely a normal value is to be above a floor."""
    found: Tensor = torch.special.ndtr((mean - floor) / deviation)
    return found


def improvement(mean: Tensor, deviation: Tensor, best: float) -> Tensor:
    """How far below the best a normal value is expected to be, none where it is above."""
    ratio = (best - mean) / deviation
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    below: Tensor = torch.special.ndtr(ratio)
    return (best - mean) * below + deviation * density
