"""Sums of two tensors by integers alone, where every one of the 65,536 pairs proves them equal to the definition."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.ir.integer_operators import int_add
from tersor.ir.proofs import refute_pairs

from .steps import Sum

_LIMIT = (1 << 31) // 256
_NEAR = sorted(range(-3, 4), key=abs)


@dataclass(frozen=True)
class FixedSum:
    """q = clamp(((a - za) * a_factor + (b - zb) * b_factor) >> (16 + shift)) + zy), rounded half up last."""

    a_factor: int
    b_factor: int
    shift: int

    def __call__(self, step: Sum, a: Tensor, b: Tensor) -> Tensor:
        """int8 and int8 to int8, as `tersor_add_neon` computes it."""
        za, zb, zy = step.zero_points
        acc = (a.to(torch.int32) - za) * self.a_factor + (b.to(torch.int32) - zb) * self.b_factor
        half = ((acc >> 16) + (zy << self.shift)).clamp(-32768, 32767)
        q = (half + (1 << (self.shift - 1))) >> self.shift
        return q.clamp(-128, 127).clamp(step.quant_min, step.quant_max).to(torch.int8)


def fixed_sum(step: Sum) -> FixedSum | None:
    """Factors that give the bits of the definition for every pair; None where none near the real ones do."""
    sa, sb, sy = step.scales
    for shift in range(6, 1, -1):
        factors = [round(scale / sy * (1 << (16 + shift))) for scale in (sa, sb)]
        if sum(map(abs, factors)) + 6 < _LIMIT:
            break
    else:
        return None
    for near in sorted(itertools.product(_NEAR, _NEAR), key=lambda pair: max(map(abs, pair))):
        found = FixedSum(factors[0] + near[0], factors[1] + near[1], shift)
        if _proven(step, found):
            return found
    return None


def _proven(step: Sum, candidate: FixedSum) -> bool:
    grids = [value for pair in zip(step.scales, step.zero_points, strict=True) for value in pair]

    def definition(a: Tensor, b: Tensor) -> Tensor:
        return int_add(a, b, *grids, step.quant_min, step.quant_max)  # type: ignore[arg-type, call-arg]  # scale, zero point

    return refute_pairs(definition, lambda a, b: candidate(step, a, b)) is None
