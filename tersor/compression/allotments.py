"""How many channels each layer keeps: what such an allotment is judged by untrained, and where a search begins.

A start is a way to share out what goes: by what channels cost on the target, by multiply-accumulates, by parameters,
the same share everywhere, or by what the metric loses when each layer alone is cut. Each is followed down to where the
metric reaches the floor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import fx

from tersor.backends.clock import Clock
from tersor.ir.errors import LoweringError, PassError
from tersor.ir.program import Program
from tersor.passes.base import Pass, finished
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.axes import Axis, Remaining
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.counts import named
from tersor.passes.pruning.criteria import Magnitude
from tersor.passes.pruning.flow import Kind
from tersor.passes.pruning.groups import Group, groups
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.pruning.prune_channels import PruneChannels, Ranking
from tersor.passes.pruning.targets import Channels, Latency, Macs, Parameters, Target
from tersor.passes.training.options import Better

from .attempts import Attempts
from .measurement import Measured
from .plan import Plan

Counts = Mapping[str, int]
"""How many indices stay of each axis, by its name."""

Key = tuple[int, ...]
"""The same in the order of the axes."""

_SHARES = (0.75, 0.5, 0.25)
"""What is left of one axis alone, to see what the metric loses by it."""

_BISECTIONS = 5

SINGLY = (Kind.HEADS, Kind.EXPERTS)
"""Axes whose indices are counted one by one, whatever multiple the target likes."""


@dataclass
class Ground:
    """What allotments of one plan are judged by. base: what is done beside cutting. whole: what it costs uncut.

    trials: how many programs may still be judged; costs are looked at up to twice as often.
    judged: what was found to be worth how much. looked_up: what was found to cost how much, where that is a model.
    errors: the logarithm of that over what had been estimated.
    """

    attempts: Attempts
    base: Plan
    start: Program
    table: LayerTable
    whole: Measured
    better: Better
    trials: int
    judged: dict[Key, float] = field(default_factory=dict)
    looked_up: dict[Key, float] = field(default_factory=dict)
    errors: dict[Key, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = dimensions(self.start)
        self.axes: dict[str, Group] = named(groups(self.start, found))
        self.estimates = Estimates(self.table, Costs(self.start, found), [group.leaf for group in self.axes.values()])
        self.allowed, self.lookups = self.trials, 2 * self.trials
        self.exact = self.whole.clock is Clock.MODELLED

    @property
    def sizes(self) -> dict[str, int]:
        """Every axis whole."""
        return {name: group.size for name, group in self.axes.items()}

    def key(self, counts: Counts) -> Key:
        """Counts in the order of the axes."""
        return tuple(counts[name] for name in self.axes)

    def named(self, key: Key) -> Counts:
        """Counts by name."""
        return dict(zip(self.axes, key, strict=True))

    def plan(self, counts: Counts) -> Plan:
        """The plan with so many channels: those axes that are cut are named."""
        return dataclasses.replace(self.base, counts={k: n for k, n in counts.items() if n < self.axes[k].size} or None)

    def worth(self, counts: Counts) -> float:
        """The metric before quantization, growing where it gets better; minus infinity where there is none."""
        key = self.key(counts)
        if key not in self.judged:
            self.trials -= 1
            self.judged[key] = self._judged(counts)
        return self.judged[key]

    def _judged(self, counts: Counts) -> float:
        try:
            steps = self.plan(counts).shaping(self.attempts.ingredients)
            value = self.attempts.gauge.score(self._after(steps))
        except PassError:
            return -math.inf
        return value if self.better is Better.HIGHER else -value

    def _after(self, steps: list[Pass]) -> Program:
        """What passes make of the start, which is canonical; what is taken in the end is verified then."""
        program = self.start.copy()
        for step in steps:
            if not isinstance(step, Canonicalize):
                program = finished(step, step.run(program)).program
        return program

    def estimate(self, counts: Counts) -> float:
        """The cost by the table of layers."""
        return self.estimates(self.key(counts))

    def spent(self, counts: Counts) -> float:
        """What the target says that it costs, where that is a model; where it is measured, by the table of layers.

        The table is measured once, so that of two allotments the noise of a measurement does not decide.
        """
        if not self.exact:
            return self.estimate(counts)
        key = self.key(counts)
        if key not in self.looked_up:
            self.lookups -= 1
            self.looked_up[key] = self._modelled(counts)
        return self.looked_up[key]

    def _modelled(self, counts: Counts) -> float:
        """Costs do not depend on what is quantized how exactly: one batch to calibrate on is enough."""
        given = self.attempts.ingredients
        given = dataclasses.replace(given, calibration=given.calibration[:1])
        try:
            program = self._after(self.plan(counts).passes(given))
            found = self.attempts.gauge.costs(program, timed=True)
        except (LoweringError, PassError):
            return math.inf
        if found.latency is None:
            return math.inf
        if min(found.latency, self.estimate(counts)) > 0:
            self.errors[self.key(counts)] = math.log(found.latency / self.estimate(counts))
        self.estimates.learn(self.key(counts), found.layers)
        return found.latency


class Estimates:
    """Costs by a table of layers, quickly, and better with each allotment that the target was asked about.

    What a layer costs is kept by how many indices are left of its own axes: as the target said, where it was asked;
    else as the table says.
    """

    def __init__(self, table: LayerTable, costs: Costs, axes: Sequence[Axis]) -> None:
        self._table, self._costs, self._axes = table, costs, axes
        whole = {node: table.of_node(costs, node, Remaining({})) for node in table.nodes(costs)}
        cut = [Remaining({axis: 1}) for axis in axes]
        self._places = {
            node: [place for place, left in enumerate(cut) if table.of_node(costs, node, left) != cost]
            for node, cost in whole.items()
        }
        self._layers: dict[fx.Node, dict[Key, float]] = {node: {} for node in whole}
        self._fixed: dict[fx.Node, float] = {}
        self._known: dict[Key, float] = {}

    def __call__(self, key: Key) -> float:
        """The cost with so many indices left of each axis."""
        if key not in self._known:
            self._known[key] = self._table.total([self._of(node, key) for node in self._layers])
        return self._known[key]

    def _of(self, node: fx.Node, key: Key) -> float:
        known, own = self._layers[node], self._own(node, key)
        if own not in known:
            left = Remaining({self._axes[place]: key[place] for place in self._places[node]})
            known[own] = self._table.of_node(self._costs, node, left)
        return known[own]

    def _own(self, node: fx.Node, key: Key) -> Key:
        return tuple(key[place] for place in self._places[node])

    def learn(self, key: Key, layers: Mapping[str, float]) -> None:
        """What the target said of each layer, beside what the first time was more than the table says.

        Where layers run at once there is nothing to learn: what one takes depends on what the others leave of the part.
        """
        if self._table.at_once:
            return
        for node, known in self._layers.items():
            if node.name in layers:
                fixed = self._fixed.setdefault(node, layers[node.name] - self._of(node, key))
                known[self._own(node, key)] = layers[node.name] - fixed
        self._known.clear()


@dataclass(frozen=True)
class Found:
    """An allotment, what it costs, and what it is worth."""

    counts: Counts
    spent: float
    worth: float


@dataclass
class Starts:
    """Ways to share out what goes, each cut to where what is left is still worth `floor`. multiple: of channels."""

    ground: Ground
    floor: float
    multiple: int

    def found(self) -> Iterator[Found]:
        """One of each way to share out, cut to where the floor is reached, as long as half of the trials are left."""
        left = self.ground.trials // 2
        for path in self._paths():
            if self.ground.trials < left:
                return
            found = self._furthest(path)
            if found is not None:
                yield found

    def _paths(self) -> Iterator[Callable[[float], Counts]]:
        table = self.ground.table
        for target in (Latency(1.0, table), Macs(1.0), Parameters(1.0)):
            yield partial(self._allotted, target, Ranking.COST)
        yield partial(self._allotted, Channels(1.0), Ranking.LOCAL)
        if len(_SHARES) * len(self.ground.axes) <= self.ground.trials // 3:
            steps = self._by_sensitivity()
            yield lambda share: _after(self.ground.sizes, steps, round((1 - share) * len(steps)))

    def _allotted(self, target: Target, ranking: Ranking, share: float) -> Counts:
        step = PruneChannels(
            dataclasses.replace(target, share=share), Magnitude(normalized=True), ranking, multiple=self.multiple
        )
        return {**self.ground.sizes, **step.allot(self.ground.start)}

    def _furthest(self, path: Callable[[float], Counts]) -> Found | None:
        """By bisection; the metric is taken to fall along the path."""
        low, high, best = 0.0, 1.0, None
        for _ in range(_BISECTIONS):
            if self.ground.trials <= 0:
                break
            share = (low + high) / 2
            try:
                counts = path(share)
            except PassError:  # it cannot be cut so far
                low = share
                continue
            if self.ground.worth(counts) >= self.floor:
                high, best = share, counts
            else:
                low = share
        return None if best is None else Found(best, self.ground.spent(best), self.ground.worth(best))

    def _by_sensitivity(self) -> list[tuple[str, int]]:
        """Cuts of single axes in an order: those first that lose least of the metric for what they save."""
        whole = self.ground.sizes
        top, total = self.ground.worth(whole), self.ground.estimate(whole)
        steps = []
        for name, size in whole.items():
            before, lost, saved = size, 0.0, 0.0
            for share in _SHARES:
                count = max(least(size, self._step(name)), up(round(size * share), self._step(name)))
                if count >= before:
                    continue
                now = max(lost, top - self.ground.worth({**whole, name: count}))
                less = total - self.ground.estimate({**whole, name: count})
                rate = (now - lost) / max(less - saved, 1e-12 * total)
                between = [n for n in range(before - 1, count, -1) if n % self._step(name) == 0]
                steps += [(rate, name, n) for n in (*between, count)]
                before, lost, saved = count, now, less
        highest: dict[str, float] = {}
        ranked = []
        for rate, name, count in steps:  # no cut goes before a wider one of the same axis
            highest[name] = max(rate, highest.get(name, -math.inf))
            ranked.append((highest[name], name, count))
        return [(name, count) for _, name, count in sorted(ranked, key=lambda step: step[0])]

    def _step(self, name: str) -> int:
        return 1 if self.ground.axes[name].kind in SINGLY else self.multiple


def least(size: int, step: int) -> int:
    """How many indices of an axis stay at least."""
    return min(size, max(step, up(math.ceil(size * PruneChannels.least), step)))


def up(count: int, step: int) -> int:
    """The next multiple."""
    return -(-count // step) * step


def _after(whole: Counts, steps: list[tuple[str, int]], done: int) -> Counts:
    """The counts once so many cuts were made."""
    return {**whole, **dict(steps[:done])}
