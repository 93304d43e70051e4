"""Requantization by an integer product and a shift, for targets without floating point.

The definition multiplies in float32, which rounds the product. A form is another function, so it has to be proven equal
on the reachable accumulators, channel by channel (`Requantization.agrees`).

MultiplyShift       (acc * M + offset) >> s; for most multipliers above 2**-8 there is one, below 2**-12 for few
MultiplyShiftEven   acc * M >> s, rounded half to even; equal by construction where the multiplier is M * 2**-s with so
                    few bits that no product is rounded in float32, which `SnapScales` sees to
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .proofs import Requantization

MANTISSA_BITS = 24
"""Bits of a float32 mantissa, the leading one included."""


@dataclass(frozen=True)
class RequantizeForm(ABC):
    """One way to requantize. Called with int64[channels, cases], it gives int64 of that shape; monotone in each."""

    zero_point: int
    quant_min: int
    quant_max: int

    @abstractmethod
    def steps(self, acc: Tensor) -> Tensor:
        """Accumulators in steps of the output grid, before the zero point and the clamp."""

    def __call__(self, acc: Tensor) -> Tensor:
        """Accumulators to values on the grid."""
        return (self.steps(acc) + self.zero_point).clamp(self.quant_min, self.quant_max)


@dataclass(frozen=True)
class MultiplyShift(RequantizeForm):
    """(acc * multiplier + offset) >> shift, int64[channels] each. An offset of half a step rounds half up."""

    multiplier: Tensor
    shift: Tensor
    offset: Tensor

    def steps(self, acc: Tensor) -> Tensor:
        return (acc * self.multiplier.unsqueeze(1) + self.offset.unsqueeze(1)) >> self.shift.unsqueeze(1)


@dataclass(frozen=True)
class MultiplyShiftEven(RequantizeForm):
    """acc * multiplier * 2**-shift, rounded half to even; int64[channels] each."""

    multiplier: Tensor
    shift: Tensor

    @classmethod
    def of(cls, case: Requantization) -> MultiplyShiftEven:
        """The multipliers as they are. Only `case.agrees` says for which channels it is equal: those of few bits."""
        return cls(case.zero_point, case.quant_min, case.quant_max, *mantissa_and_shift(case.multiplier))

    def steps(self, acc: Tensor) -> Tensor:
        return shift_half_even(acc * self.multiplier.unsqueeze(1), self.shift.unsqueeze(1))


def shift_half_even(values: Tensor, shift: Tensor) -> Tensor:
    """values * 2**-shift, rounded half to even, of int64 below 2**61 in magnitude.

    Negative shifts go left, and saturate at 2**61.
    """
    left, right = (-shift).clamp(0, 61), shift.clamp(0, 62)
    down = values >> right
    rest = values - (down << right)
    half = torch.where(right > 0, 1 << (right - 1).clamp(min=0), 1)
    up = (rest > half) | ((rest == half) & (right > 0) & (down & 1 == 1))
    limit = 1 << (61 - left)
    return torch.where(left > 0, torch.minimum(torch.maximum(values, -limit), limit) << left, down + up)


def bit_length(values: Tensor) -> Tensor:
    """How many bits non-negative int64 values take, exact up to 2**62."""
    _, exponent = torch.frexp(values.to(torch.float64))
    exponent = exponent.to(torch.int64)
    # A value just below a power of two may have been rounded up to it.
    return torch.where(values < (1 << (exponent - 1).clamp(0, 62)), exponent - 1, exponent).clamp(min=0)


def mantissa_and_shift(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """float32[n] as mantissa * 2**-shift with the least, so odd, mantissa, int64[n] each."""
    fraction, exponent = torch.frexp(multiplier.to(torch.float64))
    mantissa = (fraction * (1 << MANTISSA_BITS)).to(torch.int64)
    zeros = torch.log2((mantissa & -mantissa).to(torch.float64)).to(torch.int64)
    return mantissa >> zeros, MANTISSA_BITS - exponent.to(torch.int64) - zeros
