"""From a run to its record: what watches the pass manager, and measures after each pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import torch

from tersor.backends.base import Artifact, Backend
from tersor.ir.errors import MissingDependencyError, TersorError
from tersor.ir.printer import to_text
from tersor.ir.program import Program
from tersor.ir.stage import Stage
from tersor.passes.base import Promise
from tersor.passes.report import PipelineResult, ReportRow

from .environment import machine, versions
from .latency import target_latency
from .layer_record import layer_errors, layers_of
from .run_record import Metric, Point, RunRecord, Step, Timing


@dataclass
class Recorder:
    """Watches a run: `PassManager(passes, watch=recorder)`, then `recorder.record(...)`.

    target: where latency is measured after each step, if the target takes the program as it is then; None measures
        none. seconds: for each measurement. threads: of the target's runtime, where it can be told.
    evaluate: the metric of a program, on held-out data; `metric` says what it is.

    Steps that a checkpoint gave back did not run again and are not measured again.
    """

    target: Backend | None = None
    evaluate: Callable[[Program], float] | None = None
    metric: Metric | None = None
    seconds: float = 0.2
    threads: int = 1
    _started: float = field(default_factory=time.time)
    _steps: list[tuple[ReportRow, Step]] = field(default_factory=list)
    _exact: Program | None = None
    _changed: bool = False
    _quantized: Program | None = None

    def __call__(self, row: ReportRow, program: Program) -> None:
        """Note a step and measure the program after it."""
        if row.modified and row.promise not in ("", Promise.EXACT.value):
            self._changed = True
        if not self._changed:
            self._exact = program
        if program.stage is Stage.FAKE_QUANT:
            self._quantized = program
        if self._steps and not row.modified:
            last = self._steps[-1][1]
            self._steps.append((row, step_of(row, last.metric, last.latency)))
            return
        with torch.no_grad():
            value = None if self.evaluate is None else float(self.evaluate(program))
        latency, note = (None, "") if self.target is None else self._measured(program, self.target)
        self._steps.append((row, step_of(row, value, latency, note)))

    @property
    def last_metric(self) -> float | None:
        """The metric after the last step, where it was measured."""
        return self._steps[-1][1].metric if self._steps else None

    def record(
        self,
        result: PipelineResult,
        given: Program,
        artifact: Artifact | None = None,
        *,
        recipe: str = "",
        settings: Mapping[str, str] | None = None,
        points: Sequence[Point] = (),
    ) -> RunRecord:
        """The record of the run that made `result` of `given`, lowered to `artifact`."""
        report = None if artifact is None else artifact.report
        errors, against = layer_errors(result.program, self._exact, self._quantized)
        return RunRecord(
            name=given.name,
            target="" if report is None else report.target,
            started=datetime.fromtimestamp(self._started, timezone.utc).isoformat(timespec="seconds"),
            seconds=time.time() - self._started,
            versions=versions(),
            machine=machine(),
            settings=dict(settings or {}),
            metric=self.metric or (None if self.evaluate is None else Metric("metric")),
            steps=tuple(self._step(row) for row in result.report.rows),
            layers=layers_of(result.program, given, errors, () if report is None else report.audit),
            error_of=against,
            points=tuple(points),
            integer_share=None if report is None else report.integer_share,
            files={} if report is None else dict(report.files),
            before=to_text(given),
            after=to_text(result.program),
            recipe=recipe,
            notes=() if report is None else report.notes,
        )

    def _step(self, row: ReportRow) -> Step:
        return next((step for seen, step in self._steps if seen is row), None) or step_of(row)

    def _measured(self, program: Program, target: Backend) -> tuple[Timing | None, str]:
        """The latency; None, and the reason, where the target does not take the program as it is now."""
        try:
            return target_latency(program, target, self.seconds, self.threads), ""
        except MissingDependencyError:
            raise
        except TersorError as error:
            return None, f"no latency: {error.what}"


def step_of(row: ReportRow, metric: float | None = None, latency: Timing | None = None, note: str = "") -> Step:
    """A row of a report, with what was measured beside it."""
    return Step(
        name=row.name,
        promise=row.promise,
        options=dict(row.options),
        modified=row.modified,
        nodes=row.nodes,
        parameters=row.parameters,
        bytes=row.bytes,
        macs=row.macs,
        sqnr=row.sqnr,
        sqnr_total=row.sqnr_total,
        metric=metric,
        latency=latency,
        seconds=row.seconds,
        notes=(*row.notes, *([note] if note else [])),
    )
