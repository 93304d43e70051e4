"""From a budget to a plan: cheap trials for what things cost, then training for what they are worth.

Costs do not depend on what the weights are, so each route is first driven untrained to where it meets the limits. The
routes that do are judged, the gentlest first; one is tuned, and taken where it keeps the floor.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tersor.backends.clock import Clock
from tersor.ir.errors import MissingDependencyError, PassError
from tersor.passes.quantization.precision_plan import Precision
from tersor.passes.training.options import Better

from .attempts import Attempt, Attempts, forget
from .budget import Budget, is_enough
from .measurement import Measured
from .plan import Plan

_LEAST = 0.03
_TRIALS = 6
_CLOSE = 0.9
"""A route is driven until it takes at least so much of what it may."""

_COMPARED = 3
"""Routes that meet the limits are compared before one is trained, so many at a time."""

_LADDER = (0.8, 0.6, 0.45, 0.33, 0.24, 0.17, 0.12, 0.08)
"""Shares of multiply-accumulates that are tried in turn where nothing but a floor is given."""

_DENSITY = 0.5


class BudgetError(PassError):
    """The budget cannot be met: it says what was reached, what stopped it, and what to relax."""


@dataclass
class Planner:
    """baseline: what the program given costs on the target, and is worth. start: what is compressed."""

    attempts: Attempts
    budget: Budget
    baseline: Measured
    better: Better
    notes: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.likes = self.attempts.ingredients.likes
        self.trains = self.attempts.ingredients.trains
        self.labelled = self.attempts.ingredients.data is not None
        self.limits = {what: limit.within(self._before(what)) for what, limit in self.budget.costs()}
        floor = self.budget.limit("floor")
        self.floor = None if floor is None else floor.within(self.baseline.metric or 0.0)

    def _before(self, what: str) -> float:
        found = self.baseline.cost(what)
        if found is None:
            raise BudgetError(f"there is no {what} to take a share of")
        if what == "latency" and self.baseline.seconds is None and not self._is_share(what):
            raise BudgetError(
                f"the target counts {self.baseline.unit}, which says nothing of seconds",
                found=f"latency={self.budget.latency!r}",
                hint='a share, as latency="0.5x"',
            )
        return found

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
        if self.floor is not None and not self.limits:
            return self._furthest()
        if not self.limits:
            return self._taken(
                Plan(quantized_training=self.labelled, tuned=self.labelled), "nothing more was asked for"
            )
        return self._within_limits()

    def _within_limits(self) -> Attempt:
        feasible: list[Attempt] = []
        below: list[Attempt] = []
        for route in self._routes():
            found = self._drive(route)
            if found is None:
                continue
            found.reason = f"meets {self._limits_text()}, untrained"
            feasible.append(found)
            if route == Plan() or len(feasible) == _COMPARED:
                taken = self._keeping_floor(feasible, below)
                if taken is not None:
                    return taken
                feasible = []
        taken = self._keeping_floor(feasible, below)
        if taken is not None:
            return taken
        raise self._impossible(below)

    def _keeping_floor(self, feasible: list[Attempt], below: list[Attempt]) -> Attempt | None:
        """The first of them, the best untrained first, that keeps the floor once it is tuned."""
        for attempt in self._by_metric(feasible):
            for plan in self._ways(attempt.plan):
                tuned = self._fitted(plan)
                if tuned is None:
                    continue
                if self._is_enough(tuned):
                    others = "" if len(feasible) == 1 else f", and the best untrained of {len(feasible)} that do"
                    return self._taken(tuned, f"meets {self._limits_text()}{others}")
                tuned.reason = f"metric {tuned.metric:.4g}, below the floor of {self.floor:.4g}: stepped back"
                below.append(tuned)
                forget([tuned])
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
        """How a plan of that cost can be had, the quickest first."""
        untouched = plan.prune is None and plan.pattern is None and not self.attempts.ingredients.student
        if untouched or not self.trains:
            yield plan
        else:
            yield dataclasses.replace(plan, tuned=True)
        if self.labelled and plan.block_bits is None:
            yield dataclasses.replace(plan, tuned=True, quantized_training=True)

    def _fitted(self, plan: Plan) -> Attempt | None:
        """The plan tuned; a little smaller where tuning led to other channels, and those cost more."""
        for _ in range(3):
            attempt = self.attempts.run(plan)
            if attempt.measured is None:
                return None
            excess = self._excess(attempt.measured)
            if excess <= 1 or plan.prune is None:
                if excess > 1:
                    attempt.reason = f"{excess:.3g} times what {self._limits_text()} allows"
                    return None
                return attempt
            attempt.reason = f"{excess:.3g} times what it may take once it was tuned"
            plan = dataclasses.replace(plan, prune=plan.prune / excess * 0.98)
        return None

    def _taken(self, attempt: Attempt | Plan, reason: str) -> Attempt:
        found = self.attempts.run(attempt) if isinstance(attempt, Plan) else attempt
        if found.failure is not None:
            raise found.failure
        found.chosen, found.reason = True, reason
        return found

    # -- routes ------------------------------------------------------------------------------------------------------

    def _routes(self) -> Iterator[Plan]:
        """Ways down, the gentlest first; each can go further by cutting channels."""
        yield Plan()
        sparse = self.likes.sparse(_DENSITY) if set(self.limits) == {"latency"} else None
        if sparse is not None:
            yield Plan(pattern=sparse)
        yield Plan(prune=1.0)
        if sparse is None:
            sparse = self.likes.sparse(_DENSITY) if "latency" in self.limits else None
        if sparse is not None:
            yield Plan(pattern=sparse, prune=1.0)
        for scheme in self.likes.schemes()[1:]:
            yield Plan(scheme=scheme)
            yield Plan(scheme=scheme, prune=1.0)
        if "bytes" in self.limits:
            for bits in self.likes.block_bits:
                yield Plan(block_bits=bits)
                yield Plan(block_bits=bits, prune=1.0)

    def _drive(self, route: Plan) -> Attempt | None:
        """The least that a route has to do to meet the limits; None where it cannot."""
        if route.prune is None:
            attempt = self.attempts.run(route, score=False)
            if attempt.measured is None:
                return None
            excess = self._excess(attempt.measured)
            if excess <= 1:
                return attempt
            attempt.reason = f"{excess:.3g} times what {self._limits_text()} allows"
            return None
        coarse = self.likes.multiples.channels
        finer = [multiple for multiple in (coarse // 2, coarse // 4) if multiple]
        for multiple in (None, *finer):
            found = self._pruned(dataclasses.replace(route, multiple=multiple))
            if found is not None:
                return found
        return None

    def _pruned(self, route: Plan) -> Attempt | None:
        whole = self.attempts.run(dataclasses.replace(route, prune=None, multiple=None), score=False)
        if whole.measured is None:
            return None
        excess = self._excess(whole.measured)
        low, high, best = _LEAST, 1.0, None
        share = min(0.98, 0.95 / excess)
        for _ in range(_TRIALS):
            attempt = self.attempts.run(dataclasses.replace(route, prune=round(max(share, _LEAST), 4)), score=False)
            if attempt.measured is None:
                if attempt.error:
                    low, share = share, (share + high) / 2
                    if high - low < 0.02:
                        break
                    continue
                break
            excess = self._excess(attempt.measured)
            if excess <= 1:
                best, low = attempt, share
                attempt.reason = "meets the limits, untrained"
                if excess >= _CLOSE:
                    break
            else:
                attempt.reason = f"{excess:.3g} times what it may take"
                high = share
                if share <= _LEAST:
                    break
            if high - low < 0.02:
                break
            guess = share / excess * 0.97
            share = guess if low < guess < high else (low + high) / 2
        return best

    # -- nothing but a floor -----------------------------------------------------------------------------------------

    def _furthest(self) -> Attempt:
        """Down the ladder while the floor holds; one step back where it does not."""
        best = self._standing(Plan())
        if best is None:
            below = [attempt for attempt in self.attempts.tried if attempt.metric is not None]
            raise self._impossible(below)
        pattern = self.likes.sparse(_DENSITY)
        good = 1.0
        if pattern is not None:
            sparse = self._standing(Plan(pattern=pattern))
            if sparse is not None and self._is_cheaper(sparse, best):
                best = sparse
            else:
                pattern = None
        for share in _LADDER:
            found = self._standing(Plan(prune=share, pattern=pattern))
            if found is None:
                between = self._standing(Plan(prune=round(math.sqrt(good * share), 4), pattern=pattern))
                best = between if between is not None and self._is_cheaper(between, best) else best
                break
            good = share
            best = found if self._is_cheaper(found, best) else best
        floor = f"the floor of {self.floor:.4g}"
        return self._taken(best.plan, f"the least latency of those that keep {floor}")

    def _standing(self, plan: Plan) -> Attempt | None:
        """The plan in the first way that keeps the floor; None where none does."""
        by_layer = self._by_layer() if plan == Plan() and not self.trains else iter(())
        for way in itertools.chain(self._ways(plan), by_layer):
            attempt = self.attempts.run(way)
            if attempt.error:
                continue
            if self._is_enough(attempt):
                attempt.reason = "keeps the floor"
                return attempt
            attempt.reason = f"metric {attempt.metric:.4g}, below the floor of {self.floor:.4g}: stepped back"
        return None

    def _is_cheaper(self, attempt: Attempt, than: Attempt) -> bool:
        ours, theirs = attempt.measured, than.measured
        return bool(ours and theirs and (ours.latency or ours.macs) < (theirs.latency or theirs.macs))

    def _by_layer(self) -> Iterator[Plan]:
        """Layers that cost the metric most stay float, where the target runs floats."""
        from ..precision_search import LayerLatency, search_precision

        ingredients, evaluate = self.attempts.ingredients, self.attempts.gauge.evaluate
        if not self.likes.floats or evaluate is None or self.floor is None or self.better is Better.LOWER:
            return
        integer = Precision.INT8_SYMMETRIC if self.likes.scheme.activation.symmetric else Precision.INT8
        drop = (self.baseline.metric or 0.0) - self.floor
        try:
            cost = LayerLatency(self.attempts.gauge.target) if self.baseline.clock is Clock.MEASURED else None
            found = search_precision(
                self.attempts.start,
                ingredients.calibration,
                metric=evaluate,
                drop=drop,
                cost=cost,
                precisions=(Precision.FLOAT32, integer),
            )
        except (MissingDependencyError, PassError) as error:
            self.notes.append(f"precision by layer was not tried: {error.what}")
            return
        yield Plan(precision=found)

    # -- judging -----------------------------------------------------------------------------------------------------

    def _excess(self, measured: Measured) -> float:
        """How many times too much it takes, of the limit that it breaks most."""
        shares = []
        for what, limit in self.limits.items():
            cost = measured.cost(what)
            assert cost is not None
            if what == "latency" and measured.seconds is not None and not self._is_share(what):
                cost *= measured.seconds
            shares.append(cost / limit)
        return max(shares)

    def _is_share(self, what: str) -> bool:
        limit = self.budget.limit(what)
        return limit is not None and limit.is_share

    def _is_enough(self, attempt: Attempt) -> bool:
        return self.floor is None or (attempt.metric is not None and is_enough(attempt.metric, self.floor, self.better))

    def _limits_text(self) -> str:
        return ", ".join(f"{what} {getattr(self.budget, what)}" for what in self.limits) or "the budget"

    def _impossible(self, below: list[Attempt]) -> BudgetError:
        """What was reached, what stopped it, and what to relax."""
        reached = {
            what: min((a.measured.cost(what) or math.inf for a in self.attempts.tried if a.measured), default=math.inf)
            for what in self.limits
        }
        if below:
            sign = 1 if self.better is Better.HIGHER else -1
            best = max(below, key=lambda attempt: sign * (attempt.metric or 0.0))
            words = best.plan.words(self.likes)
            within = f"within {self._limits_text()}" if self.limits else "at all"
            relax = f"a floor of {best.metric:.4g}, larger limits"
            more = "more epochs" if self.labelled else "data= and loss= to train with"
            return BudgetError(
                f"no plan keeps the floor {within}",
                expected=f"a metric of {self.floor:.4g}; the model itself has {self.baseline.metric:.4g}",
                found=f"{best.metric:.4g} at best, by: {words}",
                hint=f"{relax}, or {more}",
            )
        least = ", ".join(f"{what} {self._told(what, reached[what])}" for what in self.limits)
        wanted = ", ".join(f"{what} {self._told(what, limit)}" for what, limit in self._in_units().items())
        failures = [attempt.error.splitlines()[0] for attempt in self.attempts.tried if attempt.error]
        why = f"; {failures[-1]}" if failures else ""
        return BudgetError(
            "no plan is so small on this target", expected=wanted, found=f"{least} at least{why}", hint=self._relax()
        )

    def _in_units(self) -> dict[str, float]:
        """The limits as costs are measured."""
        seconds = self.baseline.seconds or 1.0
        return {
            what: limit / (seconds if what == "latency" and not self._is_share(what) else 1.0)
            for what, limit in self.limits.items()
        }

    def _told(self, what: str, amount: float) -> str:
        before = self.baseline.cost(what)
        share = f" ({amount / before:.3g}x)" if before else ""
        unit = f" {self.baseline.unit}" if what == "latency" else ""
        return f"{amount:.4g}{unit}{share}"

    def _relax(self) -> str:
        return f"relax {' or '.join(self.limits)}, or begin from a smaller model (student=)"


def _exactness(attempt: Attempt) -> float:
    """The SQNR in dB of an attempt's outputs against those of the model."""
    rows = () if attempt.result is None else attempt.result.report.rows
    found = next((row.sqnr_total for row in reversed(rows) if row.sqnr_total is not None), None)
    return -math.inf if found is None else found
