"""How dense each layer is to be, so that all of them together have one density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tersor.ir.errors import PassError
from tersor.ir.program import Program

from ..pruning.gathering import Loss
from .criteria import WeightGradient
from .layers import Layer


@dataclass(frozen=True)
class Allocation(ABC):
    """From a global density to one a layer; the mean, weighted by size, is the global one."""

    @abstractmethod
    def densities(self, program: Program, layers: Mapping[str, Layer], density: float) -> dict[str, float]:
        """The density of each layer, in (0, 1]."""


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same for all."""

    def densities(self, program: Program, layers: Mapping[str, Layer], density: float) -> dict[str, float]:
        """The density given."""
        return dict.fromkeys(layers, density)


@dataclass(frozen=True)
class ErdosRenyiKernel(Allocation):
    """In proportion to (sum of the weight's sizes) / (their product): small layers stay denser (arXiv:1911.11134)."""

    def densities(self, program: Program, layers: Mapping[str, Layer], density: float) -> dict[str, float]:
        """Scaled until the total fits; a layer that would be over 1 is dense, and the others make up for it."""
        sizes = {name: layer.weight.numel() for name, layer in layers.items()}
        raw = {name: sum(layer.weight.shape) / layer.weight.numel() for name, layer in layers.items()}
        return _fill(raw, sizes, density)


@dataclass(frozen=True)
class BySensitivity(Allocation):
    """The weights whose absence the loss would notice most, over all layers: (weight * gradient)^2.

    batches, loss: as for `WeightGradient`. least: no layer is sparser than that.
    """

    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    least: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise PassError("least is a density", expected="in (0, 1]", found=self.least)

    def densities(self, program: Program, layers: Mapping[str, Layer], density: float) -> dict[str, float]:
        """Each layer's share of the highest scores; what is lacking to `least` is taken from the others."""
        criterion = WeightGradient(self.batches, self.loss)
        gathered = criterion.gather(program, layers)
        scores = {name: criterion.score(layer, gathered).flatten() for name, layer in layers.items()}
        every = torch.cat(list(scores.values()))
        count = max(1, round(density * every.numel()))
        threshold = every.topk(count).values[-1]
        raw = {name: max(float((score >= threshold).double().mean()), self.least) for name, score in scores.items()}
        return _fill(raw, {name: score.numel() for name, score in scores.items()}, density, self.least)


def _fill(raw: Mapping[str, float], sizes: Mapping[str, int], density: float, least: float = 0.0) -> dict[str, float]:
    """Scale densities by one factor, found by bisection, so that clamped to [least, 1] they give the total."""
    total = density * sum(sizes.values())

    def at(factor: float) -> dict[str, float]:
        return {name: min(1.0, max(least, value * factor)) for name, value in raw.items()}

    def spent(factor: float) -> float:
        return sum(sizes[name] * value for name, value in at(factor).items())

    low, high = 0.0, max(1.0, 1 / min(raw.values()))
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) > total else (middle, high)
    return at(high)
