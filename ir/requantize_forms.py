"""Requantization in integers, for targets without floating point: what a circuit or a kernel computes.

The definition multiplies in float32, which rounds the product. A form is another function, so it has to be proven equal
on the reachable accumulators, channel by channel (`Requantization.agrees`).

multiply_shift      (acc * M + R) >> s; where `even`, R is half a step and a tie goes to the even neighbour. For most
                    multipliers above 2**-8 there is one, below 2**-12 for few
MultiplyShiftEven   acc * M * 2**-s rounded half to even, M the mantissa itself: equal by construction where it has so
                    few bits that no product is rounded in float32, which `SnapScales` sees to
float_product       both roundings of the float32 product; equal always

Everything is int64 of numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .proofs import Requantization

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MANTISSA_BITS = 24
"""Bits of a float32 mantissa, the leading one included."""
_LARGEST = 61
"""Magnitudes are below 2**61."""


def multiply_shift(acc: Ints, multiplier: Ints, offset: Ints, shift: Ints, even: Bools) -> Ints:
    """(acc * multiplier + offset) >> shift, where `even` with ties to even.

    With an offset of half a step, a sum without remainder was a tie: if it gives an odd number, it gives one less.
    """
    total = acc * multiplier + offset
    steps = total >> shift
    tie = even & ((total & ((np.int64(1) << shift) - 1)) == 0)
    rounded: Ints = steps - (tie & ((steps & 1) == 1))
    return rounded


def float_product(acc: Ints, mantissa: Ints, shift: Ints) -> Ints:
    """round_half_even(float32(acc) * float32(mantissa * 2**-shift)) in integers, for |acc| <= 2**31.

    A mantissa has at most 24 bits. Shifts beyond those of int64 give 0, as the product does.
    """
    magnitude = round_to_mantissa(np.abs(acc))
    product = round_to_mantissa(magnitude * mantissa)
    return np.where(acc < 0, -1, 1) * shift_half_even(product, shift)


def round_to_mantissa(values: Ints) -> Ints:
    """Non-negative integers to the nearest that float32 holds, ties to even."""
    drop = np.maximum(bit_length(values) - MANTISSA_BITS, 0)
    return shift_half_even(values, drop) << drop


def shift_half_even(values: Ints, shift: Ints) -> Ints:
    """values * 2**-shift, rounded half to even, of int64 below 2**61 in magnitude.

    Negative shifts go left, and saturate at 2**61.
    """
    left, right = np.clip(-shift, 0, _LARGEST), np.clip(shift, 0, _LARGEST + 1)
    down = values >> right
    rest = values - (down << right)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 1)
    up = (rest > half) | ((rest == half) & (right > 0) & ((down & 1) == 1))
    limit = np.int64(1) << (_LARGEST - left)
    shifted: Ints = np.where(left > 0, np.clip(values, -limit, limit) << left, down + up)
    return shifted


def bit_length(values: Any) -> Ints:
    """How many bits non-negative integers up to 2**62 take; 0 takes none."""
    given = np.asarray(values, np.int64)
    guess = np.frexp(given.astype(np.float64))[1].astype(np.int64)
    below = (guess > 0) & (given < (np.int64(1) << np.maximum(guess - 1, 0)))
    length: Ints = guess - below  # a float64 may have rounded up to the next power of two
    return length


def mantissa_and_exponent(multiplier: Tensor) -> tuple[Ints, Ints]:
    """float32[n] as mantissa * 2**-exponent with mantissas of 24 bits, int64[n] each."""
    fraction, power = np.frexp(multiplier.detach().numpy().astype(np.float64))
    return np.round(fraction * (1 << MANTISSA_BITS)).astype(np.int64), MANTISSA_BITS - power.astype(np.int64)


def mantissa_and_shift(multiplier: Tensor) -> tuple[Ints, Ints]:
    """float32[n] as mantissa * 2**-shift with the least, so odd, mantissa, int64[n] each."""
    mantissa, exponent = mantissa_and_exponent(multiplier)
    zeros = bit_length(mantissa & -mantissa) - 1
    return mantissa >> zeros, exponent - zeros


@dataclass(frozen=True)
class MultiplyShiftEven:
    """acc * multiplier * 2**-shift, rounded half to even, moved and clamped; int64[channels] each."""

    zero_point: int
    quant_min: int
    quant_max: int
    multiplier: Ints
    shift: Ints

    @classmethod
    def of(cls, case: Requantization) -> MultiplyShiftEven:
        """The multipliers as they are. Only `case.agrees` says for which channels it is equal: those of few bits."""
        return cls(case.zero_point, case.quant_min, case.quant_max, *mantissa_and_shift(case.multiplier))

    def __call__(self, acc: Tensor) -> Tensor:
        """Accumulators int64[channels, cases] to values on the grid, int64 of that shape; monotone in each channel."""
        steps = shift_half_even(acc.numpy() * self.multiplier[:, None], self.shift[:, None])
        return torch.from_numpy(np.clip(steps + self.zero_point, self.quant_min, self.quant_max))
