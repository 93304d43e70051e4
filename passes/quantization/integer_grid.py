"""Grids as numbers, for lowering: what an int8 value stands for, and tables between grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from tersor.ir.operators import quantize_to_grid
from tersor.ir.program import Program


@dataclass(frozen=True)
class IntegerGrid:
    """Integers from quant_min to quant_max; q stands for (q - zero_point) * scale. `scale` is the name of a tensor."""

    scale: str
    zero_point: int
    quant_min: int
    quant_max: int

    @classmethod
    def of(cls, program: Program, node: fx.Node) -> IntegerGrid:
        """The grid of a fake-quantize node that `is_lowered` and has one scale."""
        _, scale, zero_point, _, quant_min, quant_max = node.args
        zero = program.constant(zero_point)
        assert isinstance(scale, fx.Node)
        assert isinstance(quant_min, int)
        assert isinstance(quant_max, int)
        assert zero is not None
        return cls(str(scale.target), int(zero), quant_min, quant_max)

    def step(self, program: Program) -> Tensor:
        """The scale, float32[]."""
        return program.tensor(self.scale).detach().reshape(())

    def clamped(self, program: Program, low: float, high: float) -> IntegerGrid:
        """The part of the grid that values between `low` and `high` are rounded to. Rounding is monotone.

        Where `low` is above `high`, torch gives `high` for every value.
        """
        first = self.quant_min if math.isinf(low) else self._rounded(program, low)
        last = self.quant_max if math.isinf(high) else self._rounded(program, high)
        return replace(self, quant_min=min(first, last), quant_max=last)

    def _rounded(self, program: Program, value: float) -> int:
        return int(self.quantize(program, torch.tensor([value])))

    def quantize(self, program: Program, values: Tensor) -> Tensor:
        """Floats to int8 on this grid."""
        zero = torch.tensor(self.zero_point)
        stored = quantize_to_grid(values, self.step(program), zero, None, self.quant_min, self.quant_max)
        return stored.to(torch.int8)


def table(
    program: Program, scale: Tensor, zero_point: int, function: Callable[[Tensor], Tensor], grid: IntegerGrid
) -> Tensor:
    """The int8[256] that takes a value on one grid, through a function of floats, to another grid.

    A function that is not finite everywhere is so only where no value comes: NaN becomes the zero point.
    """
    values = (torch.arange(-128, 128, dtype=torch.int32) - zero_point).to(torch.float32) * scale
    with torch.no_grad():
        results = torch.nan_to_num(function(values).float(), nan=0.0, posinf=math.inf, neginf=-math.inf)
    return grid.quantize(program, results)
