"""Sums of two tensors by integers alone, where every one of the 65,536 pairs proves them equal to the definition."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.ir.integer_operators import int_add
from tersor.ir.proofs import refute_pairs

from .steps import Sum

_LIMIT = (1 << 31) // 256
_NEAR = sorted(itertools.product(range(-3, 4), repeat=2), key=lambda pair: max(map(abs, pair)))


@dataclass(frozen=True)
class SumGrids:
    """What a sum computes: the scales and zero points of a, b and the result, and what it is clamped to."""

    scales: tuple[float, float, float]
    zero_points: tuple[int, int, int]
    quant_min: int
    quant_max: int

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """By the definition."""
        grids = [value for pair in zip(self.scales, self.zero_points, strict=True) for value in pair]
        return int_add(a, b, *grids, self.quant_min, self.quant_max)  # type: ignore[arg-type, call-arg]  # in turns


@dataclass(frozen=True)
class FixedSum:
    """q = clamp(((a - za) * a_factor + (b - zb) * b_factor) >> (16 + shift)) + zy), rounded half up last."""

    a_factor: int
    b_factor: int
    shift: int

    def of(self, grids: SumGrids, a: Tensor, b: Tensor) -> Tensor:
        """int8 and int8 to int8, as `tersor_add_neon` computes it."""
        za, zb, zy = grids.zero_points
        acc = (a.to(torch.int32) - za) * self.a_factor + (b.to(torch.int32) - zb) * self.b_factor
        half = ((acc >> 16) + (zy << self.shift)).clamp(-32768, 32767)
        q = (half + (1 << (self.shift - 1))) >> self.shift
        return q.clamp(-128, 127).clamp(grids.quant_min, grids.quant_max).to(torch.int8)


def fixed_sum(step: Sum) -> FixedSum | None:
    """Factors that give the bits of the definition for every pair; None where none near the real ones do."""
    return _search(SumGrids(step.scales, step.zero_points, step.quant_min, step.quant_max))


@functools.lru_cache(maxsize=4096)
def _search(grids: SumGrids) -> FixedSum | None:
    """Try factors near the real ones. Pairs that refuted one are asked of the next first."""
    sa, sb, sy = grids.scales
    shift = next((s for s in range(6, 1, -1) if (abs(sa) + abs(sb)) / sy * (1 << (16 + s)) + 8 < _LIMIT), None)
    if shift is None:
        return None
    hard: list[tuple[int, ...]] = []
    for near in _NEAR:
        a_factor, b_factor = (round(scale / sy * (1 << (16 + shift))) for scale in (sa, sb))
        candidate = FixedSum(a_factor + near[0], b_factor + near[1], shift)
        if hard and not _holds(grids, candidate, torch.tensor(hard, dtype=torch.int8)):
            continue
        found = refute_pairs(grids, functools.partial(candidate.of, grids))
        if found is None:
            return candidate
        hard.append(found.inputs)
    return None


def _holds(grids: SumGrids, candidate: FixedSum, pairs: Tensor) -> bool:
    a, b = pairs.unbind(1)
    return torch.equal(grids(a, b), candidate.of(grids, a, b))
