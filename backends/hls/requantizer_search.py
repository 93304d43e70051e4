"""The cheapest circuit for each channel's requantization that is proven to equal the definition.

Requantization is a monotone step function, so its thresholds say all about it. With t the least accumulator that gives
at least k + zero_point, (acc * M + R) >> s is right exactly where, for every k,

    k * 2**s - t * M  <=  R  <  k * 2**s - (t - 1) * M

so that a multiplier and a shift either leave an interval for R or do not. The search goes from narrow multipliers to
wide ones, all channels at once, and looks at a few thresholds before it looks at all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from tersor.ir.proofs import Requantization
from tersor.ir.requantize_forms import (
    MANTISSA_BITS,
    Bools,
    Ints,
    bit_length,
    mantissa_and_exponent,
    multiply_shift,
)

from .requantizer import Form, Requantizer, signed_bits, signed_digits

FEW_STEPS = 15
"""Grids of at most so many steps, those of 4 bits, may be compared with their thresholds."""
_WIDTHS = range(1, MANTISSA_BITS + 1)
_WIDER = 3
"""How many bits more than the narrowest multiplier one with fewer digits may have."""
_LARGEST_SHIFT = 52
_PROBES = 12
_FAR = np.int64(1) << 61
_MAGNITUDE = np.int64(2**63 - 1)


@dataclass(frozen=True)
class _Steps:
    """The thresholds that decide: t and k, int64[channels, steps], and on which side of each the range ends."""

    threshold: Ints
    step: Ints
    reached: Bools
    left: Bools

    @classmethod
    def of(cls, case: Requantization) -> _Steps:
        threshold = case.thresholds().numpy()
        low, high = (end.reshape(-1, 1).numpy() for end in (case.low, case.high))
        step = np.arange(case.quant_min + 1, case.quant_max + 1)[None] - case.zero_point
        return cls(threshold, np.broadcast_to(step, threshold.shape), threshold <= high, threshold > low)

    def of_channels(self, chosen: Ints) -> _Steps:
        """Those of some channels."""
        return _Steps(self.threshold[chosen], self.step[chosen], self.reached[chosen], self.left[chosen])

    def probes(self) -> _Steps:
        """A few, the first and the last that matter among them; a grid of one value has none."""
        count = self.threshold.shape[1]
        if not count:
            return self
        matters = self.reached & self.left
        first, last = matters.argmax(1), count - 1 - matters[:, ::-1].argmax(1)
        parts = np.linspace(0, 1, min(_PROBES, count))
        places = (first[:, None] + np.round(parts * (last - first)[:, None])).astype(np.int64)

        def at(part: Ints) -> Ints:
            return np.take_along_axis(part, places, 1)

        flags = (at(part.astype(np.int64)) > 0 for part in (self.reached, self.left))
        return _Steps(at(self.threshold), at(self.step), *flags)

    def offsets(self, multiplier: Ints, shift: Ints) -> tuple[Ints, Ints]:
        """The least and the greatest R, int64[channels]; the first is above the second where there is none."""
        base = (self.step << shift[:, None]) - self.threshold * multiplier[:, None]
        least = np.where(self.reached, base, -_FAR).max(1, initial=-_FAR)
        most = np.where(self.left, base + multiplier[:, None] - 1, _FAR).min(1, initial=_FAR)
        return least, most

    def agree_even(self, multiplier: Ints, shift: Ints) -> Bools:
        """The channels where rounding acc * M / 2**s half to even is right, bool[channels]."""
        half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
        even = (shift > 0)[:, None]
        at, before = (
            multiply_shift(self.threshold - back, multiplier[:, None], half[:, None], shift[:, None], even)
            for back in (0, 1)
        )
        right: Bools = np.all((at >= self.step) | ~self.reached, 1) & np.all((before < self.step) | ~self.left, 1)
        return right


@dataclass
class _Found:
    """The best multiplier form of each channel so far; cost in adder bits, `_FAR` where there is none."""

    multiplier: Ints
    offset: Ints
    shift: Ints
    even: Bools
    cost: Ints
    width: Ints
    acc_bits: int

    @classmethod
    def nothing(cls, channels: int, acc_bits: int) -> _Found:
        def zeros() -> Ints:
            return np.zeros(channels, np.int64)

        even = np.zeros(channels, np.bool_)
        return cls(zeros(), zeros(), zeros(), even, zeros() + _FAR, zeros() + _FAR, acc_bits)

    def offer(self, channels: Ints, multiplier: Ints, offset: Ints, shift: Ints, even: Bools) -> None:
        """Take a form for these channels where it is cheaper than what they have."""
        adders = np.maximum(signed_digits(multiplier) - 1, 0) + (offset != 0) + even
        width = bit_length(multiplier)
        cost = adders * (self.acc_bits + width)
        self.width[channels] = np.minimum(self.width[channels], width)
        better = cost < self.cost[channels]
        chosen = channels[better]
        for mine, given in (
            (self.multiplier, multiplier), (self.offset, offset), (self.shift, shift), (self.even, even),
            (self.cost, cost),
        ):  # fmt: skip
            mine[chosen] = given[better]


def cheapest(case: Requantization) -> Requantizer:
    """For each channel the form that takes the least adder bits, proven over the reachable accumulators.

    What was searched for is remembered: a lowering asks twice for each layer, a sweep again and again for most.
    """
    tensors = case.multiplier.to(torch.float32), case.low.to(torch.int64), case.high.to(torch.int64)
    grid = case.zero_point, case.quant_min, case.quant_max
    return _remembered(*(tensor.detach().reshape(-1).numpy().tobytes() for tensor in tensors), grid)


@lru_cache(maxsize=1024)
def _remembered(multiplier: bytes, low: bytes, high: bytes, grid: tuple[int, int, int]) -> Requantizer:
    """The search for tensors given by their bytes. Its arrays belong to all who ask, so none may write to them."""
    ends = (torch.frombuffer(bytearray(end), dtype=torch.int64) for end in (low, high))
    chosen = _search(Requantization(torch.frombuffer(bytearray(multiplier), dtype=torch.float32), *grid, *ends))
    for column in (chosen.form, chosen.multiplier, chosen.offset, chosen.shift, chosen.even, chosen.thresholds):
        column.flags.writeable = False
    return chosen


def _search(case: Requantization) -> Requantizer:
    channels = case.multiplier.numel()
    acc_bits = signed_bits(int(case.low.min()), int(case.high.max()))
    steps = _Steps.of(case)
    found = _Found.nothing(channels, acc_bits)
    mantissa, exponent = mantissa_and_exponent(case.multiplier.reshape(-1))
    _offer_constant(found, steps)
    _offer_even(found, steps, mantissa, exponent)
    _offer_offsets(found, steps, mantissa, exponent)
    form, multiplier, shift = np.full(channels, Form.MULTIPLY, np.int64), found.multiplier, found.shift
    open_ = found.cost >= _FAR
    form[open_] = Form.FLOAT
    multiplier[open_], shift[open_] = mantissa[open_], np.clip(exponent[open_], 0, 62)
    grid = case.zero_point, case.quant_min, case.quant_max, acc_bits
    few = steps.threshold.shape[1] <= FEW_STEPS
    thresholds = steps.threshold if few else np.zeros((channels, 0), np.int64)
    chosen = Requantizer(form, multiplier, found.offset, shift, found.even, thresholds, *grid, form)
    return _with_thresholds(chosen) if few else chosen


def _with_thresholds(chosen: Requantizer) -> Requantizer:
    """Comparators where they are fewer adder bits."""
    counted = replace(chosen, form=np.full_like(chosen.form, Form.THRESHOLDS))
    return replace(chosen, form=np.where(counted.cost < chosen.cost, Form.THRESHOLDS, chosen.form))


def _offer_constant(found: _Found, steps: _Steps) -> None:
    """Channels that always give the same value take no multiplier."""
    zeros = np.zeros(len(found.cost), np.int64)
    least, most = steps.offsets(zeros, zeros)
    same = np.flatnonzero(least <= most)
    value = np.where(least > -_FAR, least, np.where(most < _FAR, most, 0))[same]
    found.offer(same, zeros[same], value, zeros[same], np.zeros(len(same), np.bool_))


def _offer_even(found: _Found, steps: _Steps, mantissa: Ints, exponent: Ints) -> None:
    """The multiplier as it is, where the product is exact or rounds alike: ties go to even as in the definition."""
    zeros = bit_length(mantissa & -mantissa) - 1
    multiplier, shift = mantissa >> zeros, exponent - zeros
    fits = np.flatnonzero((shift >= 0) & (shift <= _LARGEST_SHIFT))
    right = fits[steps.of_channels(fits).agree_even(multiplier[fits], shift[fits])]
    offset = np.where(shift > 0, np.int64(1) << np.clip(shift - 1, 0, _LARGEST_SHIFT), 0)
    found.offer(right, multiplier[right], offset[right], shift[right], shift[right] > 0)


def _offer_offsets(found: _Found, steps: _Steps, mantissa: Ints, exponent: Ints) -> None:
    """Multipliers of every width, with an offset of their own."""
    probes = steps.probes()
    for width in _WIDTHS:
        drop = MANTISSA_BITS - width
        shift = exponent - drop
        open_ = (found.width + _WIDER >= width) & (shift >= 0) & (shift <= _LARGEST_SHIFT)
        nearest = (mantissa + (np.int64(1) << drop >> 1)) >> drop
        for nudge in (0, -1, 1):
            multiplier = nearest + nudge
            channels = np.flatnonzero(open_ & (multiplier > 0))
            least, most = probes.of_channels(channels).offsets(multiplier[channels], shift[channels])
            channels = channels[least <= most]
            if not len(channels):
                continue
            least, most = steps.of_channels(channels).offsets(multiplier[channels], shift[channels])
            right = least <= most
            kept = channels[right]
            offset = _roundest(least[right], most[right])
            found.offer(kept, multiplier[kept], offset, shift[kept], np.zeros(len(kept), np.bool_))


def _roundest(least: Ints, most: Ints) -> Ints:
    """From each interval the number that ends in the most zeros.

    It is the end without the bits after the first in which it differs from the number before the interval.
    """
    below = least - 1
    first = bit_length((below ^ most) & _MAGNITUDE) - 1
    return np.where((below < 0) & (most >= 0), 0, (most >> first) << first)
