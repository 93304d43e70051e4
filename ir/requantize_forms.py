"""Requantization by integers alone: the forms that hardware without floating point can take, and the search for one.

The definition multiplies in float32, which rounds the product. Each form here is another function, so each has to be
proven equal on the reachable accumulators, channel by channel (`Requantization.agrees`). From cheap to dear:

MultiplyShiftEven   acc * M >> s, rounded half to even; equal by construction where the multiplier is M * 2**-s with so
                    few bits that no product is rounded in float32 (`SnapScales` makes it so)
MultiplyShift       (acc * M + offset) >> s; for most multipliers above 2**-8 there is one, below 2**-12 for few
ThresholdSteps      how many of the at most 255 thresholds an accumulator reaches; one comparison a step
FloatProduct        the float32 product, emulated with integers; always equal
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .proofs import Requantization

MANTISSA_BITS = 24
"""Bits of a float32 mantissa, the leading one included."""
_CANDIDATES = torch.arange(-2, 4)
_LONGEST_SHIFT = 50
"""With this, 255 steps and the products of 31 and 24 bits stay within int64."""
_SMALL = 15
"""As many thresholds as a grid of 4 bits has."""


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

    def steps(self, acc: Tensor) -> Tensor:
        return shift_half_even(acc * self.multiplier.unsqueeze(1), self.shift.unsqueeze(1))


@dataclass(frozen=True)
class ThresholdSteps(RequantizeForm):
    """quant_min plus the number of thresholds, int64[channels, steps] in order, that the accumulator reaches."""

    thresholds: Tensor

    def steps(self, acc: Tensor) -> Tensor:
        return torch.searchsorted(self.thresholds, acc.contiguous(), right=True) + (self.quant_min - self.zero_point)


@dataclass(frozen=True)
class FloatProduct(RequantizeForm):
    """The float32 product by integers: mantissa * 2**-shift is the multiplier, int64[channels] each.

    The accumulator is rounded to 24 bits, as float32 holds it; so is the product of up to 48 bits; both half to even.
    """

    mantissa: Tensor
    shift: Tensor

    def steps(self, acc: Tensor) -> Tensor:
        sign, size = acc.sign(), acc.abs()
        product = rounded_to_mantissa(rounded_to_mantissa(size) * self.mantissa.unsqueeze(1))
        return sign * shift_half_even(product, self.shift.unsqueeze(1))


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


def rounded_to_mantissa(values: Tensor) -> Tensor:
    """Non-negative int64 below 2**62 with all but the leading 24 bits rounded off, half to even."""
    excess = (bit_length(values) - MANTISSA_BITS).clamp(min=0)
    return shift_half_even(values, excess) << excess


def bit_length(values: Tensor) -> Tensor:
    """How many bits non-negative int64 values take, exact up to 2**62."""
    _, exponent = torch.frexp(values.to(torch.float64))
    exponent = exponent.to(torch.int64)
    # A value just below a power of two may have been rounded up to it.
    return torch.where(values < (1 << (exponent - 1).clamp(0, 62)), exponent - 1, exponent).clamp(min=0)


def mantissa_and_shift(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """float32[n] as mantissa * 2**-shift with the least odd mantissa, int64[n] each."""
    fraction, exponent = torch.frexp(multiplier.to(torch.float64))
    mantissa = (fraction * (1 << MANTISSA_BITS)).to(torch.int64)
    zeros = torch.log2((mantissa & -mantissa).to(torch.float64)).to(torch.int64)
    return mantissa >> zeros, MANTISSA_BITS - exponent.to(torch.int64) - zeros


# -- from a requantization -------------------------------------------------------------------------------------------


def float_product(case: Requantization) -> FloatProduct:
    """The emulation, for any multipliers."""
    return FloatProduct(*_grid(case), *mantissa_and_shift(case.multiplier))


def threshold_steps(case: Requantization) -> ThresholdSteps:
    """The thresholds, for any multipliers."""
    return ThresholdSteps(*_grid(case), case.thresholds())


def multiply_shift_even(case: Requantization) -> MultiplyShiftEven:
    """The multipliers as they are, for those of few bits. Only `Requantization.agrees` says for which it is equal."""
    return MultiplyShiftEven(*_grid(case), *mantissa_and_shift(case.multiplier))


def multiply_shift(case: Requantization, bits: int = MANTISSA_BITS) -> tuple[MultiplyShift, Tensor]:
    """The narrowest multiplier, and the shift and the offset, that put every threshold where the definition has it.

    Returns the form, and for which channels there is one, bool[channels]; the others hold the nearest multiplier.
    """
    count = case.multiplier.numel()
    thresholds = case.thresholds()
    multiplier, shift, offset, found = _fit(case, thresholds, torch.arange(count), bits)
    open_ = found.clone()
    for fewer in range(1, bits):
        channels = open_.nonzero().flatten()
        if not channels.numel():
            break
        narrow = _fit(case, thresholds, channels, fewer)
        chosen = channels[narrow[3]]
        for kept, new in zip((multiplier, shift, offset), narrow[:3], strict=True):
            kept[chosen] = new[narrow[3]]
        open_[chosen] = False
    return MultiplyShift(*_grid(case), multiplier, shift, offset), found


def _fit(
    case: Requantization, thresholds: Tensor, channels: Tensor, bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Multipliers of `bits` bits for some channels: multiplier, shift, offset, and whether they fit every threshold.

    A step k is right where t * M + offset reaches k * 2**s at its threshold t, and does not at t - 1. So each step
    bounds the offset from both sides; what is left between the bounds is equal.
    """
    fraction, exponent = torch.frexp(case.multiplier.flatten()[channels].to(torch.float64))
    shift = (bits - exponent.to(torch.int64)).clamp(0, _LONGEST_SHIFT)
    nearest = torch.floor(torch.ldexp(fraction, (exponent + shift).to(torch.float64))).to(torch.int64)
    candidates = (nearest.unsqueeze(1) + _CANDIDATES).clamp(1, (1 << bits) - 1)  # [channels, candidates]
    steps = (torch.arange(case.quant_min + 1, case.quant_max + 1) - case.zero_point) << shift.unsqueeze(1)
    reached, steps = thresholds[channels].unsqueeze(1), steps.unsqueeze(1)
    low, high = (end.flatten()[channels].reshape(-1, 1, 1) for end in (case.low, case.high))
    product, far = reached * candidates.unsqueeze(2), 1 << 62
    least = torch.where(reached <= high, steps - product, -far).amax(2)
    most = torch.where(reached > low, steps - product + candidates.unsqueeze(2) - 1, far).amin(2)
    fits, place = (least <= most).max(1, keepdim=True)
    least, most, multiplier = (values.gather(1, place).squeeze(1) for values in (least, most, candidates))
    half = torch.where(shift > 0, 1 << (shift - 1).clamp(min=0), 0)
    offset = torch.where((least <= half) & (half <= most), half, torch.maximum(least, torch.minimum(most, half)))
    return multiplier, shift, offset, fits.squeeze(1)


def cheapest_form(case: Requantization, bits: int = MANTISSA_BITS) -> RequantizeForm:
    """The first of the forms, from cheap to dear, that is proven equal for every channel.

    bits: the widest multiplier that a `MultiplyShiftEven` or `MultiplyShift` may have. Of the two, the narrower is
    taken.
    """
    even, (shifted, found) = multiply_shift_even(case), multiply_shift(case, bits)
    forms: list[MultiplyShift | MultiplyShiftEven] = [shifted] if bool(found.all()) else []
    if int(even.multiplier.max()) < (1 << bits):
        forms.insert(0, even)
    for form in sorted(forms, key=lambda form: int(form.multiplier.max())):
        if case.refute(form) is None:
            return form
    return threshold_steps(case) if case.quant_max - case.quant_min <= _SMALL else float_product(case)


def _grid(case: Requantization) -> tuple[int, int, int]:
    return case.zero_point, case.quant_min, case.quant_max
