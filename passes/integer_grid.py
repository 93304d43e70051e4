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
    def of(cls, program: Program, node: fx.Node) -> IntegerGrid | None:
        """The grid of a fake-quantize node; None where it is per channel, or its parameters are computed."""
        _, scale, zero_point, axis, quant_min, quant_max = node.args
        values = program.constant(scale), program.constant(zero_point)
        if axis is not None or any(value is None or value.numel() != 1 for value in values):
            return None
        assert isinstance(scale, fx.Node)
        assert isinstance(quant_min, int)
        assert isinstance(quant_max, int)
        return cls(str(scale.target), int(values[1]), quant_min, quant_max)  # type: ignore[arg-type]

    def step(self, program: Program) -> Tensor:
        """The scale, float32[]."""
        return program.tensor(self.scale).detach().reshape(())

    def clamped(self, program: Program, low: float, high: float) -> IntegerGrid:
        """The part of the grid that values between `low` and `high` are rounded to. Rounding is monotone."""
        ends = [self.quant_min if math.isinf(low) else self._rounded(program, low)]
        ends.append(self.quant_max if math.isinf(high) else self._rounded(program, high))
        return replace(self, quant_min=ends[0], quant_max=max(ends))

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
