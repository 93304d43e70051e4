"""What a program costs and is worth: what attempts are judged by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tersor.backends.base import Backend
from tersor.backends.clock import Clock
from tersor.ir.errors import LoweringError, PassError, TersorError
from tersor.ir.program import Program

from ..run_record import Timing


@dataclass(frozen=True)
class Measured:
    """latency: in the target's unit, which is worth `seconds` of time where that is known; None where not measured."""

    bytes: int
    macs: int
    parameters: int
    latency: float | None = None
    unit: str = ""
    seconds: float | None = None
    clock: Clock = Clock.MEASURED
    source: str = ""
    metric: float | None = None

    def cost(self, what: str) -> float | None:
        """`latency`, `bytes` or `macs`."""
        found: float | None = getattr(self, what)
        return found

    @property
    def timing(self) -> Timing | None:
        """The latency as a record of runs has it, where it is time."""
        if self.latency is None or self.seconds is None:
            return None
        return Timing(self.latency * self.seconds, self.clock, self.source)

    def costs(self) -> dict[str, float]:
        """By name, for a record."""
        found: dict[str, float] = {"bytes": self.bytes, "macs": self.macs, "parameters": self.parameters}
        if self.latency is not None and self.seconds is not None:
            found["latency_ms"] = self.latency * self.seconds * 1e3
        elif self.latency is not None:
            found[self.unit] = self.latency
        return found


@dataclass(frozen=True)
class Gauge:
    """Measures programs for one target. evaluate: the metric of a program; None measures none."""

    target: Backend
    evaluate: Callable[[Program], float] | None = None

    def costs(self, program: Program) -> Measured:
        """What it costs. Raises what the target raises where it does not take the program."""
        cost = program.cost()
        found = self.target.layer_costs(program)
        return Measured(
            cost.parameter_bytes,
            cost.macs,
            cost.parameters,
            found.total,
            found.unit,
            found.seconds,
            found.clock,
            found.source,
        )

    def metric(self, program: Program) -> float | None:
        """Its metric on held-out data. Raises PassError where that fails, or gives no number."""
        if self.evaluate is None:
            return None
        try:
            with torch.no_grad():
                value = float(self.evaluate(program))
        except TersorError:
            raise
        except Exception as error:  # a metric is somebody's code and may raise anything
            raise PassError(f"the metric failed: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise PassError("the metric gave no number", expected="a finite number", found=value)
        return value

    def takes(self, program: Program) -> bool:
        """Whether the target takes a program as it is."""
        try:
            self.target.prepare(program)
        except (LoweringError, PassError):
            return False
        return True
