"""From a budget to a plan: cheap trials for what things cost, then training for what they are worth.

Costs do not depend on what the weights are, so each route is first driven untrained to where it meets the limits. The
routes that do are judged, the gentlest first; one is tuned, and taken where it keeps the floor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tersor.backends.clock import Clock
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.pruning.targets import Latency
from tersor.passes.training.options import Better

from .allotments import Found, Ground
from .attempts import Attempt, Attempts, forget
from .budget import Budget, is_enough
from .cutting import Cutter, shrunk
from .layer_precision import LayerPrecision
from .limits import BudgetError, Limits
from .measurement import Measured
from .model_search import ModelSearch
from .plan import Plan
from .prices import Key
from .refusal import refusal
from .starts import Starts

_COMPARED = 3
"""Routes that meet the limits are compared before one is trained, so many at a time."""

_LADDER = (0.8, 0.6, 0.45, 0.33, 0.24, 0.17, 0.12, 0.08)
"""Shares of latency that are tried in turn where nothing but a floor is given."""

_HOPEFUL = 1.3
"""How much more than the best so far the cheapest start may cost for the search to go on from there."""

_CONFIRMED = 8
"""How many allotments are quantized and judged as they will be."""

_ONWARDS = 0.75
"""The share of the trials left that are made before an allotment is quantized and judged as it will be."""

_DENSITY = 0.5


@dataclass(frozen=True)
class Route:
    """A way down. cut: whether it goes on by cutting channels, as far as the limits ask."""

    plan: Plan
    cut: bool = False


@dataclass
class Planner:
    """baseline: what the program given costs on the target, and is worth."""

    attempts: Attempts
    budget: Budget
    baseline: Measured
    better: Better
    notes: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.likes = self.attempts.ingredients.likes
        self.trains = self.attempts.ingredients.trains
        self.labelled = self.attempts.ingredients.data is not None
        self.limits = Limits(self.budget, self.baseline)
        floor = self.budget.limit("floor")
        self.floor = None if floor is None else floor.within(self.baseline.metric or 0.0)
        self.cutter = Cutter(self.attempts, self.limits)
        self.precision = LayerPrecision(self.attempts, self.baseline, self.better, self.notes)
        self.below: list[Attempt] = []

    # -- choosing ----------------------------------------------------------------------------------------------------

    def choose(self) -> Attempt:
        """The attempt that meets the budget. Raises BudgetError."""
        if self.floor is not None and not is_enough(self.baseline.metric or 0.0, self.floor, self.better):
            raise BudgetError(
                "the model is below the floor before anything is done",
                expected=f"a metric of {self.floor:.4g}",
                found=f"{self.baseline.metric:.4g}",
                hint="relax the floor, or train the model first",
            )
        if self.limits:
            return self._within_limits()
        if self.floor is not None:
            return self._furthest()
        plan = Plan(quantized_training=self.labelled, tuned=self.labelled)
        return self._taken(self.attempts.run(plan), "nothing more was asked for")

    def _within_limits(self) -> Attempt:
        for feasible in self._feasible():
            taken = self._keeping_floor(feasible)
            if taken is not None:
                return taken
        if self.floor is not None:
            self.attempts.run(Plan())  # so that the refusal can say what keeps the floor
        raise refusal(self.attempts.tried, self.limits, self.floor, self.better, self.labelled, self.likes)

    def _feasible(self) -> Iterator[list[Attempt]]:
        """Attempts that meet the limits, to be compared: quantization alone by itself, others some at a time."""
        found: list[Attempt] = []
        for route in self._routes():
            attempt = self.cutter.cut(route.plan) if route.cut else self._as_it_is(route.plan)
            if attempt is None:
                continue
            attempt.reason = f"meets {self.limits}, untrained"
            found.append(attempt)
            if route == Route(Plan()) or len(found) == _COMPARED:
                yield found
                found = []
        if found:
            yield found

    def _as_it_is(self, plan: Plan) -> Attempt | None:
        attempt = self.attempts.run(plan, score=False)
        if attempt.measured is None:
            return None
        excess = self.limits.excess(attempt.measured)
        if excess > 1:
            attempt.reason = f"{excess:.3g} times what {self.limits} allows"
            return None
        return attempt

    def _keeping_floor(self, feasible: list[Attempt]) -> Attempt | None:
        """The first of them, the best untrained first, that keeps the floor in one of its ways."""
        others = "" if len(feasible) == 1 else f", and the best untrained of {len(feasible)} that do"
        for attempt in self._by_metric(feasible):
            for plan in self._ways(attempt.plan):
                tuned = self._fitted(plan)
                if tuned is not None and self._stands(tuned):
                    return self._taken(tuned, f"meets {self.limits}{others}")
        return None

    def _by_metric(self, feasible: list[Attempt]) -> list[Attempt]:
        """The best untrained first: by the metric, or by how near the outputs are to the model's without one."""
        if len(feasible) < 2:
            return feasible
        if self.attempts.gauge.evaluate is None:
            return sorted(feasible, key=lambda attempt: -_exactness(attempt))
        scored = [self.attempts.run(attempt.plan) for attempt in feasible]
        sign = 1 if self.better is Better.HIGHER else -1
        return sorted(scored, key=lambda attempt: -sign * (attempt.metric or -math.inf * sign))

    def _ways(self, plan: Plan) -> Iterator[Plan]:
        """How a plan of that cost can be had, the quickest first; those after the first are for a floor."""
        untouched = not plan.cuts and plan.pattern is None and not self.attempts.ingredients.student
        if untouched or not self.trains:
            yield plan
        else:
            yield dataclasses.replace(plan, tuned=True)
        if self.labelled and plan.block_bits is None and plan.precision is None:
            yield dataclasses.replace(plan, tuned=True, quantized_training=True)
        if self.trains and not untouched and not self.attempts.ingredients.student:
            yield plan  # a training that is too short can leave a program worse than it was
        if plan == Plan() and self.floor is not None:
            yield from self.precision.keeping(self.floor)

    def _fitted(self, plan: Plan) -> Attempt | None:
        """The plan tuned; a little smaller where tuning led to other channels, and those cost more."""
        for _ in range(3):
            attempt = self.attempts.run(plan)
            if attempt.measured is None:
                return None
            excess = self.limits.excess(attempt.measured)
            if excess <= 1:
                return attempt
            attempt.reason = f"{excess:.3g} times what {self.limits} allows"
            if plan.prune is None:
                return None
            plan = shrunk(plan, excess)
        return None

    def _stands(self, attempt: Attempt) -> bool:
        """Whether it keeps the floor, and the target takes it; if not it is let go."""
        if self.floor is not None and not self._is_enough(attempt):
            attempt.reason = f"metric {attempt.metric:.4g}, below the floor of {self.floor:.4g}: stepped back"
        elif self.attempts.complete(attempt):
            return True
        forget([attempt])
        return False

    def _taken(self, attempt: Attempt, reason: str) -> Attempt:
        if attempt.failure is not None:
            raise attempt.failure
        attempt.chosen, attempt.reason = True, reason
        return attempt

    # -- routes ------------------------------------------------------------------------------------------------------

    def _routes(self) -> Iterator[Route]:
        """Ways down, the gentlest first."""
        names = set(self.limits.amounts)
        yield Route(Plan())
        sparse = self.likes.sparse(_DENSITY) if "latency" in names else None
        wider = self.likes.wider if "latency" in names else None
        if sparse is not None and names == {"latency"}:
            yield Route(Plan(pattern=sparse))
        if wider is not None and names == {"latency"}:
            yield Route(Plan(coverage=wider))
        yield Route(Plan(), cut=True)
        if sparse is not None:
            yield Route(Plan(pattern=sparse), cut=True)
        if wider is not None:
            yield Route(Plan(coverage=wider), cut=True)
        if "bytes" in names:
            yield from map(Route, self.precision.within(self.limits.amounts["bytes"]))
        others = [Plan(scheme=scheme) for scheme in self.likes.schemes()[1:]]
        others += [Plan(block_bits=bits) for bits in self.likes.block_bits] if "bytes" in names else []
        for plan in others:
            yield Route(plan)
            yield Route(plan, cut=True)

    # -- nothing but a floor -----------------------------------------------------------------------------------------

    def _furthest(self) -> Attempt:
        """Down the ladder while the floor holds, then back by halves."""
        best = self._standing(Plan())
        if best is None:
            raise refusal(self.attempts.tried, self.limits, self.floor, self.better, self.labelled, self.likes)
        bases = [Plan()]
        for base in self._bases():
            found = self._standing(base)
            if found is not None and _cheaper(found, best) is found:
                best = found
                bases = [base] if self.trains else [*bases, base]
        for base in bases:
            for further in self._down(base, best):
                best = _cheaper(further, best)
        whole = next((attempt.measured for attempt in self.attempts.tried if attempt.plan == Plan()), None)
        return self._taken(best, _least_latency(best, whole, self.floor or 0.0))

    def _bases(self) -> Iterator[Plan]:
        """What may run faster than plain quantization before any channel is cut: zeros, grids on more, fewer bits."""
        pattern = self.likes.sparse(_DENSITY)
        if pattern is not None:
            yield Plan(pattern=pattern)
        if self.likes.wider is not None:
            yield Plan(coverage=self.likes.wider)
        yield from (Plan(scheme=scheme) for scheme in self.likes.schemes()[1:2])

    def _down(self, base: Plan, best: Attempt) -> Iterator[Attempt]:
        """What keeps the floor with fewer and fewer channels: looked for layer by layer; where it trains, by shares."""
        whole = self.attempts.run(base, score=not self.trains)
        if whole.measured is None:
            return
        table = self.cutter.table(whole)
        if whole.measured.clock is Clock.MEASURED:
            whole.estimate = whole.measured.latency
        if self.trains:
            yield from self._descent(base, table, whole.measured)
        elif whole.metric is not None and self.floor is not None:
            ground = Ground(
                self.attempts, base, self.cutter.start, table, whole.measured, self.better, self.attempts.trials
            )
            worst = math.inf if best.measured is None or best.plan == base else best.measured.latency or math.inf
            yield from self._allotments(ground, whole.metric, _HOPEFUL * worst)
            judged = f"{self.attempts.trials - ground.trials} allotments of channels were judged before quantization"
            self.notes.append(f"{judged}, for {base.words(self.likes)}")

    def _allotments(self, ground: Ground, metric: float, worst: float) -> Iterator[Attempt]:
        """Allotments that keep the floor, each cheaper than the one before. worst: what a start may cost.

        They are looked for before quantization, with the floor higher by what that was seen to cost the metric. It does
        not cost the same each time: in the end those are tried as well that miss the floor by no more than that.
        """
        assert self.floor is not None
        if not ground.axes:
            return
        sign = 1 if self.better is Better.HIGHER else -1
        floor, gap = sign * self.floor, ground.worth(ground.sizes) - sign * metric
        coarse = self.likes.multiples.channels
        finest = max(1, coarse // 4)
        ground.prices(ground.sizes)
        starts = Starts(ground, floor + gap, coarse, finest).found()
        if min((start.spent for start in starts), default=math.inf) > worst:
            return
        best, slack = Found(ground.sizes, math.inf, math.inf), abs(gap)
        refused: frozenset[Key] = frozenset()
        for _ in range(_CONFIRMED):
            search = ModelSearch(ground, floor + gap, coarse, finest, refused)
            search.run(math.ceil(_ONWARDS * ground.trials))
            found = search.best()
            if found is None or found.spent >= best.spent:
                found = search.nearly(slack)
            if found is None or found.spent >= best.spent:
                return
            attempt = self.attempts.run(ground.plan(found.key))
            if attempt.metric is None:
                return
            gap = found.worth - sign * attempt.metric
            slack = max(slack, abs(gap))
            if self._stands(attempt):
                best = found
                attempt.estimate = None if ground.prices.exact else found.spent
                yield attempt
            else:
                refused |= {found.key}

    def _descent(self, base: Plan, table: LayerTable, whole: Measured) -> Iterator[Attempt]:
        """Down the ladder to the share that does not keep the floor, and back by half of what lies between."""
        good, bad = 1.0, 0.0
        for share in _LADDER:
            found = self._standing(dataclasses.replace(base, prune=Latency(share, table)))
            if found is None:
                bad = share
                break
            good = share
            yield _estimated(found, share, whole)
        if bad:
            share = round(math.sqrt(good * bad), 4)
            found = self._standing(dataclasses.replace(base, prune=Latency(share, table)))
            if found is not None:
                yield _estimated(found, share, whole)

    def _standing(self, plan: Plan) -> Attempt | None:
        """The plan in the first way that keeps the floor; None where none does."""
        for way in self._ways(plan):
            attempt = self.attempts.run(way)
            if attempt.error:
                continue
            if self._stands(attempt):
                attempt.reason = "keeps the floor"
                return attempt
        return None

    def _is_enough(self, attempt: Attempt) -> bool:
        return self.floor is None or (attempt.metric is not None and is_enough(attempt.metric, self.floor, self.better))


def _cheaper(attempt: Attempt, than: Attempt) -> Attempt:
    """The one that takes less time, by the table that was measured once where time is measured; the other is let go."""
    if attempt is than:
        return attempt
    ours, theirs = attempt.measured, than.measured
    assert ours is not None
    assert theirs is not None
    if attempt.estimate is not None and than.estimate is not None:
        less = attempt.estimate < than.estimate
    else:
        less = (ours.latency or 0.0) < (theirs.latency or 0.0)
    forget([than if less else attempt])
    return attempt if less else than


def _estimated(attempt: Attempt, share: float, whole: Measured) -> Attempt:
    """With its latency by the table, where it is measured."""
    if whole.clock is Clock.MEASURED and whole.latency is not None:
        attempt.estimate = share * whole.latency
    return attempt


def _least_latency(attempt: Attempt, whole: Measured | None, floor: float) -> str:
    """Why it was taken; of measured times no more than what they are far enough apart for."""
    found = attempt.measured
    assert found is not None
    if found.clock is not Clock.MEASURED or found.latency is None:
        return f"the least latency of those that were tried and keep the floor of {floor:.4g}"
    reason = f"keeps the floor of {floor:.4g}; the least by the table of layers, measured once for all that were tried"
    if not attempt.plan.cuts or whole is None or whole.latency is None:
        return reason
    noise = max(found.spread, whole.spread)
    told = f"measured {found.latency:.4g} {found.unit}, and {whole.latency:.4g} uncut"
    if whole.latency - found.latency > noise:
        return f"{reason}; {told}"
    return f"{reason}; {told}: with calls {noise:.2g} {found.unit} apart that does not say that it is faster"


def _exactness(attempt: Attempt) -> float:
    """The SQNR in dB of an attempt's outputs against those of the model."""
    rows = () if attempt.result is None else attempt.result.report.rows
    found = next((row.sqnr_total for row in reversed(rows) if row.sqnr_total is not None), None)
    return -math.inf if found is None else found
