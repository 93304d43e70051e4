"""The requantizers of a layer: which form each channel has, and what it costs.

MULTIPLY and FLOAT are `multiply_shift` and `float_product` of `tersor.ir.requantize_forms`, plus the zero point, and
clamped. THRESHOLDS counts how many of the sorted thresholds an accumulator reaches, from quant_min on, for grids of few
steps. Each is proven equal to the definition over the reachable accumulators by `requantizer_search`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tersor.ir.requantize_forms import Bools, Ints, bit_length, float_product, multiply_shift

_FLOAT_ADDERS = 8
"""What rounding to 24 bits and to an integer take beside the product: two shifts by a variable and two roundings."""


class Form(enum.IntEnum):
    """How a channel is requantized."""

    MULTIPLY = 0
    FLOAT = 1
    THRESHOLDS = 2


@dataclass(frozen=True)
class Requantizer:
    """The requantization of every channel of a layer: int64[channels] each, or int64[1] where all share one.

    thresholds: int64[channels, quant_max - quant_min]; none where the grid has more steps than comparators are worth.
    product: the form of each channel without thresholds, MULTIPLY or FLOAT; its constants are there in any case.
    acc_bits: how wide the accumulator is, sign included.
    """

    form: Ints
    multiplier: Ints
    offset: Ints
    shift: Ints
    even: Bools
    thresholds: Ints
    zero_point: int
    quant_min: int
    quant_max: int
    acc_bits: int
    product: Ints

    def uniform(self) -> Requantizer:
        """One kind of circuit for all channels: thresholds in each or in none, whichever is cheaper in all."""
        if Form.THRESHOLDS not in self.forms:
            return self
        counted = replace(self, form=np.full_like(self.form, Form.THRESHOLDS))
        multiplied = replace(self, form=self.product)
        return counted if counted.cost.sum() < multiplied.cost.sum() else multiplied

    def __call__(self, acc: Ints) -> Ints:
        """int64[channels, cases] accumulators to int64 of the same shape, as the circuit computes them."""
        multiplier, offset, shift = (column[:, None] for column in (self.multiplier, self.offset, self.shift))
        steps = multiply_shift(acc, multiplier, offset, shift, self.even[:, None])
        steps = np.where(self.form[:, None] == Form.FLOAT, float_product(acc, multiplier, shift), steps)
        clamped: Ints = np.clip(steps + self.zero_point, self.quant_min, self.quant_max)
        counted = self.form == Form.THRESHOLDS
        for channel in np.flatnonzero(counted):
            reached = np.searchsorted(self.thresholds[channel], acc[channel], side="right")
            clamped[channel] = self.quant_min + reached
        return clamped

    def of_channels(self, chosen: Ints) -> Requantizer:
        """That of some channels, in their order; the same where one serves all."""
        if len(self.form) == 1:
            return self
        names = "form", "multiplier", "offset", "shift", "even", "thresholds", "product"
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    @property
    def forms(self) -> frozenset[Form]:
        """The forms that its channels have."""
        return frozenset(Form(int(form)) for form in np.unique(self.form))

    @property
    def multiplier_bits(self) -> int:
        """How wide a multiplier that serves all channels is."""
        return int(bit_length(np.where(self.form == Form.THRESHOLDS, 0, self.multiplier)).max(initial=0))

    @property
    def adders(self) -> Ints:
        """Adders, or comparators, of each channel where it has a circuit of its own: int64[channels]."""
        products = np.maximum(signed_digits(self.multiplier) - 1, 0) + (self.offset != 0) + self.even
        floats = np.maximum(signed_digits(self.multiplier) - 1, 0) + _FLOAT_ADDERS
        counted = np.array([len(np.unique(row)) for row in self.thresholds]) if self.thresholds.size else 0
        conditions = [self.form == Form.FLOAT, self.form == Form.THRESHOLDS]
        chosen: Ints = np.select(conditions, [floats, counted + 0 * products], products)
        return chosen

    @property
    def cost(self) -> Ints:
        """Adders times their width in bits, int64[channels]."""
        wide = np.where(self.form == Form.THRESHOLDS, 0, bit_length(self.multiplier))
        cost: Ints = self.adders * (self.acc_bits + wide)
        return cost


def signed_bits(low: int, high: int) -> int:
    """The least width of a two's complement number that holds both."""
    return max(int(low if low >= 0 else ~low).bit_length(), int(high if high >= 0 else ~high).bit_length()) + 1


def signed_digits(values: Any) -> Ints:
    """How many non-zero digits integers have in canonical signed-digit form: shifted terms of a constant product.

    They are the ones of x ^ 3x (Reitwiesner 1960).
    """
    given = np.abs(np.asarray(values, np.int64))
    return population(given ^ (3 * given))


def population(values: Ints) -> Ints:
    """How many bits are set."""
    count = np.zeros_like(values)
    rest = values.copy()
    while rest.any():
        count += rest & 1
        rest >>= 1
    return count
