"""Plans as they were tried: each is run once, measured, and kept on record with the reason for what became of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tersor.ir.errors import ArchiveError, LoweringError, PassError
from tersor.ir.program import Program
from tersor.passes.base import Pass
from tersor.passes.checkpoint import checkpoint_folder, plain, write_json
from tersor.passes.manager import PassManager
from tersor.passes.report import PipelineResult

from ..recording import Recorder
from ..run_record import Metric, Point
from ..typed_json import decode, encode, read
from .measurement import Gauge, Measured
from .plan import Ingredients, Plan

TRIALS = 300
"""Allotments of channels that are judged untrained, unless told otherwise."""


@dataclass
class Attempt:
    """A plan that was tried. measured: None where it failed, and `failure` says how.

    estimate: its latency by the table of layers, where plans are measured: the table was measured once for all of them.
    """

    plan: Plan
    measured: Measured | None = None
    passes: tuple[Pass, ...] = ()
    result: PipelineResult | None = None
    recorder: Recorder | None = None
    reason: str = ""
    failure: LoweringError | PassError | None = None
    chosen: bool = False
    estimate: float | None = None

    @property
    def metric(self) -> float | None:
        """Its metric, where it was measured."""
        return None if self.measured is None else self.measured.metric

    @property
    def error(self) -> str:
        """What went wrong; empty where nothing did."""
        return "" if self.failure is None else str(self.failure)


@dataclass
class Attempts:
    """Runs plans on one program.

    folder: where finished attempts are kept, so that a run that is started again takes them from there; their data is
        taken to be the same. trials: how many allotments of channels may be judged untrained for each kind of plan.
    """

    start: Program
    ingredients: Ingredients
    gauge: Gauge
    judge: Metric | None = None
    folder: Path | None = None
    trials: int = TRIALS
    tried: list[Attempt] = field(default_factory=list)

    def run(self, plan: Plan, *, score: bool = True) -> Attempt:
        """Try a plan, or give the attempt that was made already. score: whether its metric is wanted."""
        known = next((attempt for attempt in self.tried if attempt.plan == plan), None)
        if known is not None and (known.error or known.metric is not None or not score):
            return known
        if known is not None and known.result is not None and known.measured is not None and not plan.tuned:
            known.measured = self._measured(known, score=True)
            return known
        attempt = Attempt(plan)
        try:
            self._try(attempt, score)
        except (LoweringError, PassError) as error:
            if score and plan.tuned and not isinstance(error, LoweringError):
                raise
            attempt.failure = error
        self.tried = [*(known for known in self.tried if known.plan != plan), attempt]
        return attempt

    def complete(self, attempt: Attempt) -> bool:
        """Measure what was not wanted of every attempt: latency. False where the target does not take it after all."""
        found = attempt.measured
        if found is None or found.latency is not None or attempt.result is None:
            return found is not None
        try:
            costs = self.gauge.costs(attempt.result.program, timed=True)
        except LoweringError as error:
            attempt.measured, attempt.failure = None, error
            return False
        attempt.measured = dataclasses.replace(costs, metric=found.metric)
        return True

    def _try(self, attempt: Attempt, score: bool) -> None:
        store = self._store(attempt.plan)
        given = self.ingredients
        if store is not None and attempt.plan.tuned:
            given = dataclasses.replace(given, checkpoint=str(store / "steps"))
        attempt.passes = tuple(attempt.plan.passes(given))
        evaluate = self.gauge.score if score and attempt.plan.tuned and self.gauge.evaluate is not None else None
        attempt.recorder = Recorder(evaluate=evaluate, metric=self.judge)
        manager = PassManager(
            attempt.passes, checkpoint=None if store is None else store / "passes", watch=attempt.recorder
        )
        attempt.result = manager.run(self.start)
        attempt.measured = self._measured(attempt, score)

    def _measured(self, attempt: Attempt, score: bool) -> Measured:
        """What was measured when this was first tried, so that a run goes on as it went; else now."""
        assert attempt.result is not None
        program, store = attempt.result.program, self._store(attempt.plan)
        path = None if store is None else store / "measured.json"
        known = _known(path)
        if known is not None and known.latency is None and self.gauge.timed:
            known = None
        if known is not None and (known.metric is not None or not score):
            return known
        found = known or attempt.measured or self.gauge.costs(program)
        if score:
            last = None if attempt.recorder is None else attempt.recorder.last_metric
            found = dataclasses.replace(found, metric=self.gauge.metric(program) if last is None else last)
        if path is not None:
            write_json(path, encode(found))
        return found

    def _store(self, plan: Plan) -> Path | None:
        if self.folder is None:
            return None
        given = dataclasses.replace(self.ingredients, calibration=[], data=None, loss=None)
        told = repr((plain(plan), plain(given.likes), plain(given.training), self.gauge.target.name))
        return checkpoint_folder(self.folder / f"attempt-{hashlib.sha256(told.encode()).hexdigest()[:12]}")

    def points(self) -> tuple[Point, ...]:
        """Every attempt, for the record."""
        return tuple(self._point(attempt) for attempt in self.tried)

    def _point(self, attempt: Attempt) -> Point:
        found = attempt.measured
        return Point(
            attempt.plan.words(self.ingredients.likes),
            costs={} if found is None else found.costs(),
            metric=attempt.metric,
            chosen=attempt.chosen,
            reason=attempt.reason,
            options={"tuned": "yes" if attempt.plan.tuned else "no"},
            error=attempt.error,
            **({} if found is None else {"clock": found.clock}),
        )


def _known(path: Path | None) -> Measured | None:
    if path is None or not path.exists():
        return None
    try:
        return decode(read(path), Measured, str(path))
    except ArchiveError:
        return None


def forget(attempts: Iterable[Attempt]) -> None:
    """Let go of programs that are not wanted any more."""
    for attempt in attempts:
        attempt.result = None
