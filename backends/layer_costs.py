"""What each layer costs on a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tersor.ir.program import Program

from .clock import Clock


@dataclass(frozen=True)
class LayerCosts:
    """What a program costs on a target, layer by layer.

    unit: as `ms`, `cycles`. clock: how it was found. source: the same in words.
    nodes: by node of the program that was given, and of what the target made of it where it names nodes of its own.
    total: the whole: at least the sum where layers run one after another; where they all run at once, the slowest.
    seconds: of one unit, None where the unit says nothing of time.
    at_once: whether all layers run at once.
    spread: how far the middle half of the calls lie apart, in the same unit, where the whole was measured; else 0.
    """

    unit: str
    clock: Clock
    total: float
    nodes: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    source: str = ""
    at_once: bool = False
    spread: float = 0.0

    @property
    def latency(self) -> float | None:
        """The whole in seconds, where the unit says."""
        return None if self.seconds is None else self.total * self.seconds

    def __str__(self) -> str:
        return f"{self.total:.4g} {self.unit} ({self.clock})"


def by_macs(program: Program) -> LayerCosts:
    """Multiply-accumulates, for targets that say nothing else."""
    cost = program.cost()
    nodes = {name: float(found.macs) for name, found in cost.nodes.items() if found.macs}
    return LayerCosts("MACs", Clock.MODELLED, float(cost.macs), nodes, source="a multiply-accumulate each")
