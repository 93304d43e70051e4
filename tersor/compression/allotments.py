"""Allotments: how many channels each layer keeps, and what such a choice is worth before anything is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tersor.backends.clock import Clock
from tersor.ir.errors import LoweringError, PassError
from tersor.ir.program import Program
from tersor.passes.base import Pass, finished
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.counts import named
from tersor.passes.pruning.groups import Group, groups
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.training.options import Better

from .attempts import Attempts
from .measurement import Measured
from .plan import Plan
from .prices import Estimates, Key, Prices

Counts = Mapping[str, int]
"""How many indices stay of each axis, by its name."""


@dataclass(frozen=True)
class Found:
    """An allotment, what it costs, and what it is worth."""

    key: Key
    spent: float
    worth: float


@dataclass
class Ground:
    """What allotments of one plan are judged by. base: what is done beside cutting. whole: what it costs uncut.

    trials: how many programs may still be judged. judged: what was found to be worth how much.
    prices: what allotments cost; the target is asked up to twice as often.
    """

    attempts: Attempts
    base: Plan
    start: Program
    table: LayerTable
    whole: Measured
    better: Better
    trials: int
    judged: dict[Key, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = dimensions(self.start)
        self.axes: dict[str, Group] = named(groups(self.start, found))
        leaves = [group.leaf for group in self.axes.values()]
        multiples = self.attempts.ingredients.likes.multiples
        estimates = Estimates(self.table, Costs(self.start, found), leaves, multiples)
        modelled = self.whole.clock is Clock.MODELLED
        self.allowed = self.trials
        self.prices = Prices(estimates, self._asked if modelled else None, 2 * self.trials)

    @property
    def sizes(self) -> Key:
        """Every axis whole."""
        return tuple(group.size for group in self.axes.values())

    def key(self, counts: Counts) -> Key:
        """Counts in the order of the axes; one that is not named is whole."""
        return tuple(counts.get(name, group.size) for name, group in self.axes.items())

    def plan(self, key: Key) -> Plan:
        """The plan with so many channels: those axes that are cut are named."""
        counts = {
            name: count for (name, group), count in zip(self.axes.items(), key, strict=True) if count < group.size
        }
        return dataclasses.replace(self.base, counts=counts or None)

    def found(self, key: Key) -> Found:
        """An allotment with what it costs and is worth."""
        return Found(key, self.prices(key), self.worth(key))

    def worth(self, key: Key) -> float:
        """The metric before quantization, growing where it gets better; minus infinity where there is none."""
        if key not in self.judged:
            self.trials -= 1
            self.judged[key] = self._judged(key)
        return self.judged[key]

    def _judged(self, key: Key) -> float:
        try:
            steps = self.plan(key).shaping(self.attempts.ingredients)
            value = self.attempts.gauge.score(self._after(steps))
        except PassError:
            return -math.inf
        return value if self.better is Better.HIGHER else -value

    def _asked(self, key: Key) -> Measured | None:
        """What the target says. Costs do not depend on how exactly values are quantized: one batch is enough."""
        given = self.attempts.ingredients
        given = dataclasses.replace(given, calibration=given.calibration[:1])
        try:
            return self.attempts.gauge.costs(self._after(self.plan(key).passes(given)), timed=True, verify=False)
        except (LoweringError, PassError):
            return None

    def _after(self, steps: list[Pass]) -> Program:
        """What passes make of the start, which is canonical; what is taken in the end is verified then."""
        program = self.start.copy()
        for step in steps:
            if not isinstance(step, Canonicalize):
                program = finished(step, step.run(program)).program
        return program
