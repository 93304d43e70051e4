"""Sums of two values on grids of their own, in integers: proven on every pair of values that the streams can carry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from tersor.ir.integer_operators import int_add
from tersor.ir.requantize_forms import Bools, Ints, multiply_shift

from .requantizer import signed_digits

_SHIFTS = range(4, 26)
_NUDGES = tuple((a, b) for a in (0, -1, 1) for b in (0, -1, 1))
_MOST_EXCEPTIONS = 64
_SAMPLE = 997
"""Every so-many-th pair is looked at first; a prime, so that all rows and columns are seen."""


@dataclass(frozen=True)
class PairTable:
    """An operator of two int8 values over the ranges that they have: q int64[a, b] for a, b from their lows.

    zeros: the zero points of both; zero_point and the ends are those of the result's grid.
    """

    low_a: int
    low_b: int
    values: Ints
    zero_point: int
    quant_min: int
    quant_max: int
    zeros: tuple[int, int] = (0, 0)

    def rounded(self, multiplier_a: int, multiplier_b: int, shift: int, even: bool) -> PairSum:
        """The sum with an offset of half a step, which rounds to nearest."""
        offset = (1 << (shift - 1)) - self.zeros[0] * multiplier_a - self.zeros[1] * multiplier_b
        grid = self.zero_point, self.quant_min, self.quant_max
        return PairSum(multiplier_a, multiplier_b, offset, shift, even, *grid)

    def pairs(self) -> tuple[Ints, Ints, Ints]:
        """a, b and q of every pair, int64[pairs]."""
        rows, columns = self.values.shape
        a, b = np.meshgrid(self.low_a + np.arange(rows), self.low_b + np.arange(columns), indexing="ij")
        return a.reshape(-1), b.reshape(-1), self.values.reshape(-1)


@dataclass(frozen=True)
class PairSum:
    """q = clamp(((a * multiplier_a + b * multiplier_b + offset) >> shift) + zero_point), ties to even where `even`.

    exceptions: pairs (a, b, q) where the definition, which rounds in float32, gives something else. A circuit compares
    with them. table: every result, int64[a, b], where there are too many; then the rest is not used.
    """

    multiplier_a: int
    multiplier_b: int
    offset: int
    shift: int
    even: bool
    zero_point: int
    quant_min: int
    quant_max: int
    exceptions: tuple[tuple[int, int, int], ...] = ()
    table: PairTable | None = None

    def __call__(self, a: Ints, b: Ints) -> Ints:
        """int64 values to int64, as the circuit computes them."""
        if self.table is not None:
            return self.table.values[a - self.table.low_a, b - self.table.low_b]
        result = self._plain(a, b)
        for left, right, value in self.exceptions:
            result = np.where((a == left) & (b == right), value, result)
        return result

    def _plain(self, a: Ints, b: Ints) -> Ints:
        shift, even = np.array([self.shift]), np.array([self.even])
        total = a * self.multiplier_a + b * self.multiplier_b
        steps = multiply_shift(total, np.array([1]), np.array([self.offset]), shift, even)
        return np.clip(steps + self.zero_point, self.quant_min, self.quant_max)

    @property
    def largest(self) -> int:
        """What no sum of int8 values passes on its way, in magnitude."""
        return 128 * (abs(self.multiplier_a) + abs(self.multiplier_b)) + abs(self.offset)

    @property
    def adders(self) -> int:
        """Adders of a circuit for these constants; a pair that is an exception is compared with, twice."""
        digits = signed_digits([self.multiplier_a, self.multiplier_b])
        return int(np.maximum(digits - 1, 0).sum()) + 2 + self.even + 2 * len(self.exceptions)


@dataclass(frozen=True)
class _Bounds:
    """What a sum has to lie between: at least `floor` steps unless clamped below, less than one more unless above."""

    a: Ints
    b: Ints
    floor: Ints
    low: Bools
    high: Bools

    @classmethod
    def of(cls, table: PairTable) -> _Bounds:
        a, b, q = table.pairs()
        return cls(a, b, q - table.zero_point, q > table.quant_min, q < table.quant_max)

    def sample(self) -> _Bounds:
        """Some of the pairs."""
        every = slice(None, None, _SAMPLE)
        return _Bounds(self.a[every], self.b[every], self.floor[every], self.low[every], self.high[every])

    def offsets(self, multiplier_a: int, multiplier_b: int, shift: int) -> tuple[int, int]:
        """The least and greatest offset that is right for every pair; the first is the greater if there is none."""
        base = (self.floor << shift) - self.a * multiplier_a - self.b * multiplier_b
        least = int(base[self.low].max()) if self.low.any() else int(base.min())
        most = int(base[self.high].min()) + (1 << shift) - 1 if self.high.any() else least
        return least, most


@lru_cache(maxsize=256)
def proven_sum(
    ranges: tuple[tuple[int, int], ...], scales: tuple[float, ...], zeros: tuple[int, int], grid: tuple[int, ...]
) -> PairSum:
    """The circuit of an `int_add`, proven on all pairs of values that its operands can have.

    scales: of the operands, then of the result. grid: zero point and ends of the result. It is remembered: a lowering
    asks twice for each sum.
    """
    values = [torch.arange(least, most + 1, dtype=torch.int8) for least, most in ranges]
    (scale_a, scale_b, scale), (zero_a, zero_b), (zero_point, low, high) = scales, zeros, grid
    a, b = torch.meshgrid(*values, indexing="ij")
    results = int_add(a, b, scale_a, zero_a, scale_b, zero_b, scale, zero_point, low, high)
    table = PairTable(ranges[0][0], ranges[1][0], results.to(torch.int64).numpy(), zero_point, low, high, zeros)
    return cheapest_sum(table, scale_a / scale, scale_b / scale)


def cheapest_sum(table: PairTable, ratio_a: float, ratio_b: float) -> PairSum:
    """The narrowest multipliers that are proven right on all pairs; `ratio` is the scale of an input over the output's.

    Where no two multipliers are, those with the fewest exceptions, and where these are many the table itself.
    """
    bounds = _Bounds.of(table)
    sample, grid = bounds.sample(), (table.zero_point, table.quant_min, table.quant_max)
    for shift in _SHIFTS:
        near = round(ratio_a * 2**shift), round(ratio_b * 2**shift)
        tied = table.rounded(*near, shift, True)
        if _agrees(tied, sample, table) and not _differing(tied, table).size:
            return tied
        for nudge_a, nudge_b in _NUDGES:
            given = near[0] + nudge_a, near[1] + nudge_b, shift
            least, most = sample.offsets(*given)
            if least > most:
                continue
            least, most = bounds.offsets(*given)
            if least <= most:
                return PairSum(given[0], given[1], _roundest(least, most), shift, False, *grid)
    return _with_exceptions(table, ratio_a, ratio_b)


def _with_exceptions(table: PairTable, ratio_a: float, ratio_b: float) -> PairSum:
    shift, grid = _SHIFTS[-1], (table.zero_point, table.quant_min, table.quant_max)
    near = round(ratio_a * 2**shift), round(ratio_b * 2**shift)
    candidates = [table.rounded(*near, shift, even) for even in (False, True)]
    a, b, q = table.pairs()
    differing = [_differing(candidate, table) for candidate in candidates]
    best, cases = min(zip(candidates, differing, strict=True), key=lambda pair: pair[1].size)
    if cases.size > _MOST_EXCEPTIONS:
        return PairSum(0, 0, 0, 0, False, *grid, table=table)
    listed = tuple((int(a[case]), int(b[case]), int(q[case])) for case in cases)
    return replace(best, exceptions=listed)


def _agrees(candidate: PairSum, sample: _Bounds, table: PairTable) -> bool:
    expected = table.values[sample.a - table.low_a, sample.b - table.low_b]
    return bool(np.array_equal(candidate(sample.a, sample.b), expected))


def _differing(candidate: PairSum, table: PairTable) -> Ints:
    a, b, q = table.pairs()
    return np.flatnonzero(candidate(a, b) != q)


def _roundest(least: int, most: int) -> int:
    """From an interval the number that ends in the most zeros."""
    chosen = least
    for bit in range(1, 64):
        rounded = -(-least >> bit) << bit
        chosen = rounded if rounded <= most else chosen
    return chosen
