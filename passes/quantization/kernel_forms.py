"""How kernels in the field compute a quantized sum or product, beside the definition.

All of them round the same real value, but not through the same floats: where it lies within rounding of a tie, they may
part by a step. Each form takes int8 values and gives int8, so that `tersor.ir.proofs` can compare them on all pairs.
Kernels that hold values as uint8 add 128 to values and zero points, which changes the floats on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.ir.integer_operators import int_add, int_mul, requantize
from tersor.ir.proofs import all_values

Form = Callable[["PairGrids", Tensor, Tensor], Tensor]
_UNSIGNED = 128
_ROUNDINGS = 16 * 2.0**-24
"""More than the roundings to float32 of any form here add up to, as a part of the largest value on the way."""


@dataclass(frozen=True)
class PairGrids:
    """The grids of an operator of two values: scales float32[3] and zero points of both inputs and of the output."""

    scales: Tensor
    zero_points: tuple[int, int, int]
    quant_min: int
    quant_max: int

    def clamped(self, steps: Tensor) -> Tensor:
        """Unsigned steps to int8."""
        return (steps - _UNSIGNED).clamp(self.quant_min, self.quant_max).to(torch.int8)


def _fused(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x * y + z, rounded once to float32. A product of 8 and 24 bits is exact in float64."""
    return (x.double() * y.double() + z.double()).float()


def _unsigned(grids: PairGrids, *values: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    zeros = [torch.tensor(float(zero + _UNSIGNED)) for zero in grids.zero_points]
    ratios = [grids.scales[i] / grids.scales[2] for i in (0, 1)]
    return [value.float() + _UNSIGNED for value in values], zeros, ratios


def defined_sum(grids: PairGrids, a: Tensor, b: Tensor) -> Tensor:
    """The definition, `tersor::int_add`."""
    (sa, sb, sc), (za, zb, zc) = grids.scales.tolist(), grids.zero_points
    return int_add(a, b, sa, za, sb, zb, sc, zc, grids.quant_min, grids.quant_max)


def fused_sum(grids: PairGrids, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Runtime on x86 with fused multiply-add: constants gathered in one term, ratios of scales."""
    (x, y), (za, zb, zc), (ra, rb) = _unsigned(grids, a, b)
    fixed = zc - _fused(ra, za, rb * zb)
    return grids.clamped(_fused(x, ra, _fused(y, rb, fixed.expand_as(y))).round())


def separate_sum(grids: PairGrids, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Runtime on x86 without: the same, each product and sum rounded."""
    (x, y), (za, zb, zc), (ra, rb) = _unsigned(grids, a, b)
    fixed = zc - (ra * za + rb * zb)
    return grids.clamped(((fixed + x * ra) + y * rb).round())


def defined_product(grids: PairGrids, a: Tensor, b: Tensor) -> Tensor:
    """The definition, `tersor::int_mul` and `tersor::requantize`."""
    za, zb, zc = grids.zero_points
    multiplier = (grids.scales[0] * grids.scales[1]) / grids.scales[2]
    return requantize(int_mul(a, b, za, zb), multiplier, zc, grids.quant_min, grids.quant_max)


def separate_product(grids: PairGrids, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Runtime: the zero point is added before rounding."""
    steps, zero = _product_steps(grids, a, b)
    return grids.clamped((steps[0] * steps[1] + zero).round())


def fused_product(grids: PairGrids, a: Tensor, b: Tensor) -> Tensor:
    """The same by fused multiply-add."""
    steps, zero = _product_steps(grids, a, b)
    return grids.clamped(_fused(*steps, zero.expand_as(steps[0])).round())


def _product_steps(grids: PairGrids, a: Tensor, b: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    za, zb, zc = grids.zero_points
    multiplier = (grids.scales[0] * grids.scales[1]) / grids.scales[2]
    return (int_mul(a, b, za, zb).float(), multiplier), torch.tensor(float(zc + _UNSIGNED))


aten = torch.ops.aten


def _real_sum(grids: PairGrids, a: Tensor, b: Tensor) -> tuple[Tensor, float]:
    (sa, sb, sc), (za, zb, zc) = grids.scales.double().tolist(), grids.zero_points
    steps = ((a.double() - za) * sa + (b.double() - zb) * sb) / sc + zc
    return steps, 512 * (sa + sb) / sc + 256


def _real_product(grids: PairGrids, a: Tensor, b: Tensor) -> tuple[Tensor, float]:
    za, zb, zc = grids.zero_points
    multiplier = float((grids.scales[0] * grids.scales[1]) / grids.scales[2])
    return (a.double() - za) * (b.double() - zb) * multiplier + zc, 1024.0


FORMS: dict[object, tuple[Form, ...]] = {
    aten.add.Tensor: (defined_sum, fused_sum, separate_sum),
    aten.mul.Tensor: (defined_product, separate_product, fused_product),
}
"""By operator: the definition, then the others."""

_REAL: dict[object, Callable[[PairGrids, Tensor, Tensor], tuple[Tensor, float]]] = {
    aten.add.Tensor: _real_sum,
    aten.mul.Tensor: _real_product,
}
"""The real result in steps of the output grid, and the largest value on the way to one that is not clamped."""


def agree(operator: object, grids: PairGrids) -> bool:
    """Whether all forms of an operator give the same for all 65,536 pairs.

    They round the same real value. Where that is further from a tie than their floats can be from it, or beyond the
    grid, all give the same; the pairs that are left, some hundred, are computed.
    """
    a, b = _near_ties(operator, grids)
    definition, *others = (form(grids, a, b) for form in FORMS[operator])
    return all(torch.equal(definition, other) for other in others)


def _near_ties(operator: object, grids: PairGrids) -> tuple[Tensor, Tensor]:
    a, b = all_values(2)
    steps, largest = _REAL[operator](grids, a, b)
    slack = _ROUNDINGS * largest
    near = ((steps - steps.floor()) - 0.5).abs() <= slack
    near &= (steps > grids.quant_min - 1) & (steps < grids.quant_max + 1)
    return a[near], b[near]
