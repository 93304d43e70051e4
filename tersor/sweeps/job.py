"""One try, as a worker runs it: everything that it needs travels in the job, or stands in the sweep's folder."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from tersor.backends.base import Backend
from tersor.ir.errors import TersorError
from tersor.ir.program import Program
from tersor.passes.base import Pass
from tersor.passes.manager import PassManager

from ..latency import artifact_latency
from ..lowering import lower
from ..recipe import build_passes
from ..recipe_data import Materials
from ..recording import Recorder
from ..run_record import Metric, RunRecord
from ..sources import load_data, load_metric, open_artifact
from ..timing import torch_threads
from ..verification import RunnableArtifact, inputs_for
from .outcome import Outcome, plain_error
from .settings import Setting

PROGRAM, ARTIFACT = "program.tersor", "artifact"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""No fault of one try, so they end the sweep."""


@dataclass(frozen=True)
class Job:
    """One try. given: the program's file; folder: where the worker leaves its record, program and artifact."""

    key: str
    setting: Setting
    given: Path
    folder: Path
    data: str | Sequence[Any] | None = None
    batches: int = 64
    metric: str | Callable[[Program], float] | None = None
    judge: Metric | None = None
    target: Backend | None = None
    threads: int = 1

    def without_data(self) -> Job:
        """What measuring needs of it: neither batches nor passes, which would travel for nothing."""
        setting = Setting(self.setting.name, (), self.setting.options)
        return replace(self, setting=setting, data=None, metric=None)

    def failed(self, error: str, seconds: float = 0.0) -> Outcome:
        """The outcome of a try that failed."""
        return Outcome(self.key, self.setting.name, self.setting.options, error=error, seconds=seconds)


def run(job: Job) -> Outcome:
    """Run the passes, lower where there is a target, judge. An error of the try is its outcome.

    Raises OSError where the disk is full or cannot be written to.
    """
    started = time.perf_counter()
    try:
        with torch_threads(job.threads):
            outcome = _run(job)
    except Exception as error:  # noqa: BLE001  # passes, data and metrics are somebody's code
        full = _full(error)
        if full is not None:
            raise OSError(full.errno, full.strerror, str(job.folder)) from None
        kind = "" if isinstance(error, TersorError) else f"{type(error).__name__}: "
        return job.failed(f"{kind}{plain_error(error)}", time.perf_counter() - started)
    return replace(outcome, seconds=time.perf_counter() - started)


def time_it(job: Job, outcome: Outcome, seconds: float) -> Outcome:
    """Measure the artifact that `run` left, which nothing else should disturb. An error is the try's outcome."""
    try:
        side = RunnableArtifact(open_artifact(job.folder / ARTIFACT), job.setting.name)
        found = artifact_latency(side.artifact, inputs_for(side, side), seconds, job.threads)
    except TersorError as error:
        return replace(outcome, error=f"no latency: {plain_error(error)}")
    return replace(outcome, costs={**outcome.costs, "latency_ms": found.seconds * 1e3}, clock=found.clock)


def _full(error: BaseException | None) -> OSError | None:
    """The error of the disk that is behind an error, if there is one: a full disk, a file that cannot be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        if isinstance(error, SafetensorError):
            return OSError(errno.EIO, str(error))
        error = error.__cause__ or error.__context__
    return None


def _run(job: Job) -> Outcome:
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    program = Program.load(job.given)
    recorder = Recorder()
    result = PassManager(_passes(job, program), progress=False, watch=recorder).run(program)
    artifact = None if job.target is None else lower(result.program, job.target, job.folder / ARTIFACT)
    result.program.save(job.folder / PROGRAM)
    value = _judged(job, result.program)
    record = recorder.record(result, program, artifact, recipe=_text(job.setting), settings=job.setting.options)
    _with_metric(record, job.judge, value).save(job.folder)
    cost = result.program.cost()
    costs: dict[str, float] = {
        "parameters": cost.parameters,
        "bytes": cost.parameter_bytes,
        "macs": cost.macs,
        "activation_bytes": cost.peak_activation_bytes,
    }
    if artifact is not None:
        costs["file_bytes"] = sum(artifact.report.files.values())
    total = result.report.rows[-1].sqnr_total
    return Outcome(job.key, job.setting.name, job.setting.options, costs, value, total)


def _passes(job: Job, program: Program) -> list[Pass]:
    if job.setting.recipe is None:
        return list(job.setting.work)  # type: ignore[arg-type]  # passes, where it is no recipe
    data = load_data(job.data) if isinstance(job.data, str) else job.data
    calibration = None if data is None else list(islice(data, job.batches))
    return build_passes(job.setting.recipe, calibration, job.setting.name, Materials(calibration, teacher=program))


def _judged(job: Job, program: Program) -> float | None:
    if job.metric is None:
        return None
    evaluate = load_metric(job.metric) if isinstance(job.metric, str) else job.metric
    with torch.no_grad():
        return float(evaluate(program))


def _with_metric(record: RunRecord, metric: Metric | None, value: float | None) -> RunRecord:
    if metric is None:
        return record
    *before, last = record.steps
    return replace(record, metric=metric, steps=(*before, replace(last, metric=value)))


def _text(setting: Setting) -> str:
    """The recipe as YAML; blank for passes that were built in Python."""
    if setting.recipe is None:
        return ""
    return yaml.safe_dump(_plain(setting.recipe), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
