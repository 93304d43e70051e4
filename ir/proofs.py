"""Proofs that another way to compute a quantized value gives the bits of the definition.

The domains are finite, so a proof looks at all of them. Requantization is a monotone step function of its accumulator:
two of them are equal where they agree on both sides of each of the at most 255 steps, and at the ends. An operator of
two 8-bit values has 65,536 cases. Each function here returns None, or the first case that differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from .accumulators import accumulator_range
from .integer_operators import requantize

if TYPE_CHECKING:
    from .program import Program

MAGIC = 12582912.0
"""1.5 * 2**23: a float32 between this and twice as much has no fraction, so adding it rounds half to even."""
_MAGIC_ACCUMULATOR = 1 << 22
_MAGIC_PRODUCT = float((1 << 15) - 1)

Implementation = Callable[[Tensor], Tensor]
"""int64[channels, cases] accumulators to integers of the same shape; monotone in the accumulator."""


@dataclass(frozen=True)
class Counterexample:
    """Inputs for which the definition gives `expected` and the other implementation `found`."""

    inputs: tuple[int, ...]
    expected: int
    found: int
    channel: int | None = None

    def __str__(self) -> str:
        where = "" if self.channel is None else f" of channel {self.channel}"
        return f"{', '.join(map(str, self.inputs))}{where}: {self.expected} by definition, {self.found} here"


@dataclass(frozen=True)
class Requantization:
    """One requantization: multipliers float32[channels], the grid, and the reachable accumulators int64[channels]."""

    multiplier: Tensor
    zero_point: int
    quant_min: int
    quant_max: int
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, program: Program, node: fx.Node) -> Requantization:
        """That of a requantize node: a channel for each multiplier, or for each bound of the accumulator."""
        acc, multiplier, zero_point, low, high = node.args
        given = program.constant(multiplier)
        assert isinstance(acc, fx.Node)
        assert given is not None
        reach, factors = accumulator_range(program, acc), given.detach().flatten()
        assert reach is not None
        bounds = [reach.low.flatten(), reach.high.flatten()]
        if bounds[0].numel() not in (1, factors.numel()) and factors.numel() != 1:
            bounds = [bounds[0].min(), bounds[1].max()]
        wide, least, most = torch.broadcast_tensors(factors, *bounds)
        return cls(wide, zero_point, low, high, least, most)  # type: ignore[arg-type]  # integers, by its schema

    def __call__(self, acc: Tensor) -> Tensor:
        """By the definition: int64[channels, cases] to int64."""
        grid = self.zero_point, self.quant_min, self.quant_max
        return requantize(acc, self.multiplier.reshape(-1, 1), *grid).to(torch.int64)

    def thresholds(self) -> Tensor:
        """For each channel and each value above quant_min, the least accumulator that gives at least that value.

        int64[channels, quant_max - quant_min]; one more than `high` where none does. Bisection, for all at once.
        """
        steps = torch.arange(self.quant_min + 1, self.quant_max + 1)
        shape = (self.multiplier.numel(), steps.numel())
        low = self.low.reshape(-1, 1).expand(shape).clone()
        high = (self.high.reshape(-1, 1) + 1).expand(shape).clone()
        while bool((low < high).any()):
            middle = (low + high) >> 1
            reached = self(middle) >= steps
            high = torch.where(reached, middle, high)
            low = torch.where(reached, low, torch.minimum(middle + 1, high))
        return low

    def cases(self) -> Tensor:
        """The accumulators that decide equality, int64[channels, cases]: both sides of each step, and the ends."""
        steps = self.thresholds()
        ends = torch.stack([self.low.reshape(-1), self.high.reshape(-1)], dim=1).expand(steps.shape[0], 2)
        every = torch.cat([steps - 1, steps, ends], dim=1)
        return torch.maximum(torch.minimum(every, self.high.reshape(-1, 1)), self.low.reshape(-1, 1))

    def agrees(self, candidate: Implementation) -> Tensor:
        """The channels, bool[channels], in which a monotone implementation equals the definition."""
        cases = self.cases()
        return (self(cases) == candidate(cases)).all(1)

    def refute(self, candidate: Implementation) -> Counterexample | None:
        """None where a monotone implementation equals the definition on every reachable accumulator."""
        cases = self.cases()
        expected, found = self(cases), candidate(cases)
        for channel, case in (expected != found).nonzero()[:1].tolist():
            values = cases[channel, case], expected[channel, case], found[channel, case]
            acc, right, wrong = (int(value) for value in values)
            return Counterexample((acc,), right, wrong, channel)
        return None

    def allows_magic(self) -> Tensor:
        """The channels, bool[channels], for which `magic_requantize` equals the definition.

        Below 2**22 an accumulator added to the bits of `MAGIC` reads as the float MAGIC + acc, exactly. A product of at
        most 2**15 - 1, added to MAGIC, is rounded half to even into the low 16 bits.
        """
        most = torch.maximum(self.low.abs(), self.high.abs())
        product = most.to(torch.float64) * self.multiplier.to(torch.float64)
        return (most < _MAGIC_ACCUMULATOR) & (product <= _MAGIC_PRODUCT)


def magic_requantize(acc: Tensor, multiplier: Tensor, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """Requantization without conversions, as a kernel does it: int64 accumulators to int64.

    The accumulator starts at the bits of `MAGIC`; subtract, multiply, add, and read the bits again. Equal to the
    definition where `Requantization.allows_magic`.
    """
    bits = torch.tensor(MAGIC).view(torch.int32)
    started = (acc.to(torch.int32) + bits).view(torch.float32)
    rounded = (started - MAGIC) * multiplier + MAGIC
    steps = rounded.view(torch.int32) - bits
    return (steps + zero_point).clamp(quant_min, quant_max).to(torch.int64)


def refute_lookup(
    definition: Callable[[Tensor], Tensor], candidate: Callable[[Tensor], Tensor]
) -> Counterexample | None:
    """Compare two operators of one int8 value on all 256."""
    (values,) = all_values(1)
    return _first_difference((values,), definition(values), candidate(values))


def refute_pairs(
    definition: Callable[[Tensor, Tensor], Tensor], candidate: Callable[[Tensor, Tensor], Tensor]
) -> Counterexample | None:
    """Compare two operators of two int8 values on all 65,536 pairs."""
    left, right = all_values(2)
    return _first_difference((left, right), definition(left, right), candidate(left, right))


def all_values(count: int) -> tuple[Tensor, ...]:
    """Every combination of that many int8 values, int8[256 ** count] each."""
    values = torch.arange(-128, 128, dtype=torch.int8)
    return tuple(axis.flatten() for axis in torch.meshgrid(*[values] * count, indexing="ij"))


def _first_difference(inputs: tuple[Tensor, ...], expected: Tensor, found: Tensor) -> Counterexample | None:
    for (case,) in (expected != found).nonzero()[:1].tolist():
        return Counterexample(tuple(int(x[case]) for x in inputs), int(expected[case]), int(found[case]))
    return None
