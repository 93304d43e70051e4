"""Sweeps: many tries side by side, each kept when it is finished, and one table of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tersor.backends.base import Backend
from tersor.ir.errors import RecipeError
from tersor.ir.program import Program
from tersor.passes.console import progress_bar
from tersor.passes.progress import listening, tell
from tersor.passes.training.options import Better

from ..environment import machine, versions
from ..lowering import resolve
from ..run_record import Metric
from ..sources import load_program
from .fingerprint import file_digest, fingerprint
from .job import ARTIFACT, PROGRAM, Job, time_it
from .outcome import GIVEN, Definition, Folder, Outcome, Planned
from .settings import Setting, check, settings_of
from .table import Sweep
from .workers import Borrowed, Processes, Workers

COSTS = ("parameters", "bytes", "macs", "activation_bytes", "file_bytes", "latency_ms")


def sweep(
    model: Program | str | Path,
    tries: Any,
    *,
    out: str | Path,
    data: str | Iterable[Any] | None = None,
    batches: int = 64,
    metric: str | Callable[[Program], float] | None = None,
    better: Better = Better.HIGHER,
    target: str | Backend | None = None,
    latency: bool = False,
    costs: Sequence[str] = (),
    executor: Executor | None = None,
    workers: int | None = None,
    seconds: float = 0.5,
    keep: bool = False,
    retry: bool = False,
    progress: bool | None = None,
) -> Sweep:
    """Run every try on a model, side by side, and give them in one table.

    model: a Program, or what the command line names. tries: a `Grid`, a list of recipes or of lists of passes, or a
        mapping from names to them.
    out: a folder. What is finished stands in it, so a sweep that was stopped, however hard, goes on where it was when
        it is run again; a try that failed counts as finished unless `retry` is set.
    data: batches for recipes, at most `batches` of them; a list, or `module:function`, which each worker calls itself.
    metric: a function that takes a program and gives a number, or `module:function`; without one, tries are judged by
        the SQNR of their outputs against the model's. better: which way it is to go.
    target: where each is lowered to; latency: measured there, one after another, when nothing else runs.
    costs: what the Pareto front is judged by: of `parameters`, `bytes`, `macs`, `activation_bytes`, `file_bytes`,
        `latency_ms`; the latency where it is measured, else the bytes.
    executor: any of concurrent.futures, whose workers see the folder `out`; else `workers` processes of this machine.
    keep: leave each try's program and artifact in `out/points/KEY`. seconds: for each latency.
    progress: show a progress bar; None shows it where stderr is a terminal.

    Raises RecipeError where something is not known or cannot be sent to a worker, before anything runs; OSError where
    the folder cannot be written. A try that fails is a row with its error.
    """
    if latency and target is None:
        raise RecipeError("latency is measured on a target", hint="name one: target=...")
    chosen = _costs(costs, latency, target)
    settings = settings_of(tries)
    check(settings, data is not None)
    backend = None if target is None else resolve(target)
    given = data if data is None or isinstance(data, str) else list(data)
    judge = None if metric is None else Metric(_name(metric), better)
    program = model if isinstance(model, Program) else load_program(str(model))
    folder = Folder(Path(out).absolute())
    with folder.locked():
        same = fingerprint(_given(program, folder), versions().get("tersor"), given, batches, metric, backend)
        shared = {"batches": batches, "metric": metric, "judge": judge, "target": backend}
        jobs = _jobs(settings, same, folder, given, **shared)
        folder.define(_definition(program, jobs, chosen, judge, backend, model))
        hands: Workers = Processes(workers) if executor is None else Borrowed(executor)
        _Run(folder, jobs, hands, keep).all(retry, seconds if latency else None, progress)
        result = Sweep.load(folder.path)
        result.save(folder.path / "sweep.csv")
        result.save(folder.path / "report.html")
        return result


class _Run:
    """One run of a sweep: what is done, and what is left to do."""

    def __init__(self, folder: Folder, jobs: Sequence[Job], workers: Workers, keep: bool) -> None:
        self.folder, self.jobs, self.workers, self.keep = folder, jobs, workers, keep
        self.done: dict[str, Outcome] = {}

    def all(self, retry: bool, seconds: float | None, progress: bool | None) -> None:
        """Every try, then the latencies where `seconds` are given; the workers end with it, however it ends."""
        try:
            bar = nullcontext() if progress is False else progress_bar(always=progress is True)
            with bar as listener, listening(listener):
                self.tries(retry)
                if seconds is not None:
                    self.latencies(seconds)
        except BaseException:
            self.workers.stop(now=True)
            raise
        self.workers.stop(now=False)
        self.tidy()

    def tries(self, retry: bool) -> None:
        """Run what is not finished."""
        for job in self.jobs:
            found = self.folder.outcome(job.key)
            if found is not None and not (retry and found.error):
                self.done[job.key] = replace(found, name=job.setting.name, options=job.setting.options)
        left = [job for job in self.jobs if job.key not in self.done]
        tell("sweep", len(self.done), len(self.jobs), "")
        for job, outcome in self.workers.run(left):
            self._finish(outcome)
            tell("sweep", len(self.done), len(self.jobs), job.setting.name)

    def latencies(self, seconds: float) -> None:
        """Measure what is not measured, one after another."""
        left = [
            job for job in self.jobs if not self.done[job.key].error and "latency_ms" not in self.done[job.key].costs
        ]
        lost = [job for job in left if not (job.folder / ARTIFACT).is_dir()]
        for _, outcome in self.workers.run(lost):
            self._finish(outcome)
        for count, job in enumerate(left, start=1):
            if not self.done[job.key].error:
                self._finish(self.workers.call(time_it, job.without_data(), self.done[job.key], seconds))
            tell("latency", count, len(left), job.setting.name)

    def tidy(self) -> None:
        """Remove what was made on the way, unless it is to be kept."""
        for job in () if self.keep else self.jobs:
            shutil.rmtree(job.folder / ARTIFACT, ignore_errors=True)
            (job.folder / PROGRAM).unlink(missing_ok=True)

    def _finish(self, outcome: Outcome) -> None:
        self.folder.write(outcome)
        self.done[outcome.key] = outcome


def _given(program: Program, folder: Folder) -> str:
    """Put the program where workers find it; its digest."""
    return file_digest(program.save(folder.path / GIVEN))


def _jobs(settings: Sequence[Setting], same: str, folder: Folder, data: Any, **shared: Any) -> list[Job]:
    """A job a try, without those that are the same as one before, as where a pass is left out whose options vary."""
    found: dict[str, Job] = {}
    for setting in settings:
        key = fingerprint(same, setting.work)
        used = data if setting.recipe is not None else None
        job = Job(key, setting, folder.path / GIVEN, folder.point(key), data=used, **shared)
        found.setdefault(key, job)
    return list(found.values())


def _costs(costs: Sequence[str], latency: bool, target: str | Backend | None) -> tuple[str, ...]:
    wrong = next((cost for cost in costs if cost not in COSTS), None)
    if wrong is not None:
        raise RecipeError(f"{wrong!r} is no cost", expected=", ".join(COSTS))
    if "latency_ms" in costs and not latency:
        raise RecipeError("the latency is not measured", hint="latency=True")
    if "file_bytes" in costs and target is None:
        raise RecipeError("files are written for a target", hint="name one: target=...")
    return tuple(costs) or ("latency_ms" if latency else "bytes",)


def _definition(
    program: Program,
    jobs: Sequence[Job],
    costs: tuple[str, ...],
    metric: Metric | None,
    target: Backend | None,
    model: object,
) -> Definition:
    return Definition(
        name=program.name,
        points=tuple(Planned(job.key, job.setting.name, dict(job.setting.options)) for job in jobs),
        costs=costs,
        metric=metric,
        target="" if target is None else target.name,
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(),
        machine=machine(),
        settings={"model": str(model)} if isinstance(model, str | Path) else {},
    )


def _name(metric: str | Callable[[Program], float]) -> str:
    name = metric.rpartition(":")[2] if isinstance(metric, str) else str(getattr(metric, "__name__", "metric"))
    return "metric" if name == "<lambda>" else name
