"""How many channels each layer keeps, looked for untrained: from several starts, by exchanges, on a target's cost.

A start is a way to share out what goes: by what channels cost on the target, by multiply-accumulates, by parameters,
the same share everywhere, or by what the metric loses when each layer alone is cut. Each is followed down to where the
metric reaches the floor. The cheapest are then refined: a few channels are taken here and given there, as long as that
costs less and keeps the floor.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tersor.backends.clock import Clock
from tersor.ir.errors import LoweringError, PassError
from tersor.ir.program import Program
from tersor.passes.base import Pass, finished
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.axes import Remaining
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

_LEAST = 0.1
"""The share of an axis that stays at least, as in `PruneChannels`."""

_SHARES = (0.75, 0.5, 0.25)
"""What is left of one axis alone, to see what the metric loses by it."""

_BISECTIONS = 5
_MOVED = 12
"""Axes that are looked at in one round of exchanges, either way."""

_TRIED = 8
"""Exchanges that are tried in a round, the most promising first."""

_SINGLY = (Kind.HEADS, Kind.EXPERTS)


@dataclass
class Ground:
    """What allotments of one plan are judged by. base: what is done beside cutting. whole: what it costs uncut.

    trials: how many programs may still be judged; costs are looked at up to twice as often.
    """

    attempts: Attempts
    base: Plan
    start: Program
    table: LayerTable
    whole: Measured
    better: Better
    trials: int
    _worth: dict[tuple[int, ...], float] = field(default_factory=dict)
    _spent: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = dimensions(self.start)
        self.axes: dict[str, Group] = named(groups(self.start, found))
        self.costs = Costs(self.start, found)
        self.lookups = 2 * self.trials
        self.exact = self.whole.clock is Clock.MODELLED

    @property
    def sizes(self) -> dict[str, int]:
        """Every axis whole."""
        return {name: group.size for name, group in self.axes.items()}

    def plan(self, counts: Counts) -> Plan:
        """The plan with so many channels: those axes that are cut are named."""
        return dataclasses.replace(self.base, counts={k: n for k, n in counts.items() if n < self.axes[k].size} or None)

    def worth(self, counts: Counts) -> float:
        """The metric before quantization, growing where it gets better; minus infinity where there is none."""
        key = tuple(counts[name] for name in self.axes)
        if key not in self._worth:
            self.trials -= 1
            self._worth[key] = self._judged(counts)
        return self._worth[key]

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
        return self.table(self.costs, Remaining({self.axes[name].leaf: count for name, count in counts.items()}))

    def spent(self, counts: Counts) -> float:
        """What the target says that it costs, where that is a model; where it is measured, by the table of layers.

        The table is measured once, so that of two allotments the noise of a measurement does not decide.
        """
        if not self.exact:
            return self.estimate(counts)
        key = tuple(counts[name] for name in self.axes)
        if key not in self._spent:
            self.lookups -= 1
            self._spent[key] = self._modelled(counts)
        return self._spent[key]

    def _modelled(self, counts: Counts) -> float:
        """Costs do not depend on what is quantized how exactly: one batch to calibrate on is enough."""
        given = self.attempts.ingredients
        given = dataclasses.replace(given, calibration=given.calibration[:1])
        try:
            program = self._after(self.plan(counts).passes(given))
            found = self.attempts.gauge.costs(program, timed=True).latency
        except (LoweringError, PassError):
            return math.inf
        return math.inf if found is None else found


@dataclass(frozen=True)
class Found:
    """An allotment, what it costs, and what it is worth."""

    counts: Counts
    spent: float
    worth: float


@dataclass
class Search:
    """Looks for the allotment that costs least of those that are worth `floor`.

    multiple: of channels, as the target likes them; exchanges go on in halves of it, down to `finest`.
    """

    ground: Ground
    floor: float
    multiple: int
    finest: int

    # -- starts ------------------------------------------------------------------------------------------------------

    def starts(self) -> Iterator[Found]:
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
        return None if best is None else self.found(best)

    def found(self, counts: Counts) -> Found:
        """Judged."""
        return Found(counts, self.ground.spent(counts), self.ground.worth(counts))

    def _by_sensitivity(self) -> list[tuple[str, int]]:
        """Cuts of single axes in an order: those first that lose least of the metric for what they save."""
        whole = self.ground.sizes
        top, total = self.ground.worth(whole), self.ground.estimate(whole)
        steps = []
        for name, size in whole.items():
            before, lost, saved = size, 0.0, 0.0
            for share in _SHARES:
                count = max(self._least(name, self._step(name)), _up(round(size * share), self._step(name)))
                if count >= before:
                    continue
                now = max(lost, top - self.ground.worth({**whole, name: count}))
                less = total - self.ground.estimate({**whole, name: count})
                rate = (now - lost) / max(less - saved, 1e-12 * total)
                between = [n for n in range(before - 1, count, -1) if n % self._step(name) == 0]
                steps += [(rate, name, n) for n in (*between, count)]
                before, lost, saved = count, now, less
        ordered: list[tuple[str, int]] = []
        highest: dict[str, float] = {}
        ranked = []
        for rate, name, count in steps:  # no cut goes before a wider one of the same axis
            highest[name] = max(rate, highest.get(name, -math.inf))
            ranked.append((highest[name], name, count))
        ordered += [(name, count) for _, name, count in sorted(ranked, key=lambda step: step[0])]
        return ordered

    # -- exchanges ---------------------------------------------------------------------------------------------------

    def refined(self, found: Found) -> Found:
        """Exchange channels while that is cheaper, or as cheap and better, and keeps the floor."""
        widest = step = 2 * self.multiple
        while step >= self.finest:
            steps = [widest >> halved for halved in range((widest // step).bit_length())]
            better = self._exchanged(found, steps) if self.ground.trials > 0 and self.ground.lookups > 0 else None
            found, step = (found, step // 2) if better is None else (better, step)
        return found

    def _exchanged(self, now: Found, steps: Sequence[int]) -> Found | None:
        """What one to three axes changed at once make cheaper, those tried first that promise most.

        What each axis alone changes is known; of several it is taken to add up.
        """
        moves = [move for name in self._moved(now) for step in steps for move in self._moves(now, name, step)]
        promising = {}
        for several in itertools.chain.from_iterable(itertools.combinations(moves, count) for count in (1, 2, 3)):
            changed = {move.name: move.count for move in several}
            worth = now.worth + sum(move.worth for move in several)
            spent = now.spent + sum(move.spent for move in several)
            if len(changed) == len(several) and worth >= self.floor and (spent, -worth) < (now.spent, -now.worth):
                promising[tuple(sorted(changed.items()))] = (spent, -worth)
        for changes in sorted(promising, key=lambda changes: promising[changes])[:_TRIED]:
            counts = {**now.counts, **dict(changes)}
            if self.ground.worth(counts) < self.floor:
                continue
            tried = self.found(counts)
            if (tried.spent, -tried.worth) < (now.spent, -now.worth):
                return tried
        return None

    def _moved(self, now: Found) -> list[str]:
        """The axes whose channels cost most."""
        if len(now.counts) <= _MOVED:
            return list(now.counts)
        saved = {name: now.spent - self.ground.estimate({**now.counts, name: 1}) for name in now.counts}
        return sorted(saved, key=lambda name: -saved[name])[:_MOVED]

    def _moves(self, now: Found, name: str, step: int) -> Iterator[Move]:
        """One axis narrower, and wider."""
        count, size = now.counts[name], self.ground.axes[name].size
        step = max(1, step // self.multiple) if self.ground.axes[name].kind in _SINGLY else step
        down = max(self._least(name, min(step, self._step(name))), _up(count - step, step))
        up = min(size, (count // step + 1) * step)
        for changed in sorted({down, up} - {count}):
            if self.ground.trials <= 0 or self.ground.lookups <= 0:
                return
            tried = self.found({**now.counts, name: changed})
            if math.isfinite(tried.spent) and math.isfinite(tried.worth):
                yield Move(name, changed, tried.spent - now.spent, tried.worth - now.worth)

    def _step(self, name: str) -> int:
        return 1 if self.ground.axes[name].kind in _SINGLY else self.multiple

    def _least(self, name: str, step: int) -> int:
        size = self.ground.axes[name].size
        return min(size, max(step, _up(math.ceil(size * _LEAST), step)))


@dataclass(frozen=True)
class Move:
    """One axis with another count: what that adds to the cost and to the worth."""

    name: str
    count: int
    spent: float
    worth: float


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _after(whole: Counts, steps: list[tuple[str, int]], done: int) -> Counts:
    """The counts once so many cuts were made."""
    return {**whole, **dict(steps[:done])}
