"""Who runs the tries: processes of this machine, or any executor that one brings along."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from multiprocessing.util import _exit_function  # type: ignore[attr-defined]  # what a worker's own end calls
from typing import Any, Protocol

from tersor.ir.errors import RecipeError, TersorError

from .job import Job, run
from .outcome import Outcome

_PATIENCE = 2.0
"""Seconds that a worker has to end."""
_AT_ONCE = 64
"""Tries that stand in line at an executor whose workers nobody counts."""
_GUARD = 'put the call below `if __name__ == "__main__":`, since a worker imports the script first'
_NAMED = "write a function at the top of a module, or name it as module:function; batches as a list"


class Workers(Protocol):
    """What runs jobs."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Run the jobs side by side; each with its outcome, as they finish."""
        ...

    def call(self, function: Callable[..., Outcome], *arguments: Any) -> Outcome:
        """Run one function, nothing beside it."""
        ...

    def stop(self, now: bool) -> None:
        """Let the workers go; `now` does not wait for what they do."""
        ...


class Processes:
    """Processes of this machine, each with one thread of torch. A process that dies takes its own try with it alone.

    They are started afresh and not forked, since torch's threads do not survive a fork, and they end with the process
    that started them, however that ends.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or max(1, _cores())
        self._pool: ProcessPoolExecutor | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Run the jobs; no more are handed out than there are workers, so that few are in doubt when one dies."""
        for job in jobs:
            packed(job)  # before anything runs
        waiting, running = deque(jobs), dict[Future[Outcome], Job]()
        while waiting or running:
            while waiting and len(running) < self.count:
                job = waiting.popleft()
                running[self._started().submit(_run_packed, packed(job))] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            lost = []
            for future in done:
                job = running.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    lost.append(job)
            if lost:
                lost += running.values()
                running.clear()
                self.stop(now=True)
                yield from ((job, self._alone(job)) for job in lost)

    def call(self, function: Callable[..., Outcome], *arguments: Any) -> Outcome:
        """Run one function in a worker. A worker that dies is an error of the job, the first argument."""
        try:
            return self._started().submit(function, *arguments).result()
        except BrokenProcessPool:
            self.stop(now=True)
            job: Job = arguments[0]
            return job.failed("the worker process died")

    def stop(self, now: bool) -> None:
        """Shut the pool down. Processes that are to stop now are told so, and killed where they do not listen."""
        if self._pool is None:
            return
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        if now:
            _end_processes(processes)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None

    def _alone(self, job: Job) -> Outcome:
        """Run a try that was under way when a worker died, so that it is known which one it was."""
        self._pool = _pool(1)
        try:
            outcome = self._pool.submit(_run_packed, packed(job)).result()
        except BrokenProcessPool:
            outcome = job.failed("the worker process died: out of memory, or the code ended it")
        self.stop(now=False)
        return outcome

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            if getattr(multiprocessing.current_process(), "_inheriting", False):
                raise RecipeError("a sweep was started while its own worker was starting", hint=_GUARD)
            self._pool = _pool(self.count)
            try:
                self._pool.submit(os.getpid).result()
            except BrokenProcessPool:
                self._pool = None
                raise TersorError("no worker process could start", hint=_GUARD) from None
        return self._pool


class Borrowed:
    """Any executor of concurrent.futures, which stays its owner's: threads, Dask's, one of a cluster."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._running: dict[Future[Outcome], Job] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Run the jobs. Raises TersorError where the executor itself breaks."""
        waiting, running = deque(jobs), self._running
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                job = waiting.popleft()
                running[self._submit(job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield (job := running.pop(future)), self._result(future, job)

    def call(self, function: Callable[..., Outcome], *arguments: Any) -> Outcome:
        """Run one function."""
        return self._result(self.executor.submit(function, *arguments), arguments[0])

    def stop(self, now: bool) -> None:
        """Take back what was not begun."""
        for future in self._running:
            future.cancel()

    def _submit(self, job: Job) -> Future[Outcome]:
        if isinstance(self.executor, ProcessPoolExecutor):
            return self.executor.submit(_run_packed, packed(job))
        try:
            return self.executor.submit(run, job)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise RecipeError(f"{job.setting.name} cannot be sent: {error}", hint=_NAMED) from error

    def _result(self, future: Future[Outcome], job: Job) -> Outcome:
        try:
            return future.result()
        except BrokenExecutor as error:
            hint = "what is finished is kept: run the sweep again"
            raise TersorError(f"the executor broke: {error}", hint=hint) from error
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  # an executor has errors of its own, as Dask's KilledWorker
            return job.failed(f"the worker failed: {type(error).__name__}: {error}")


def packed(job: Job) -> bytes:
    """A job as bytes for another process. Raises RecipeError that names what cannot travel there.

    Tensors go by value: left to multiprocessing they would take shared memory, of which containers have little.
    """
    try:
        data = pickle.dumps(job)
    except Exception as error:  # noqa: BLE001  # pickling raises whatever the object's own methods do
        where = _culprit(job, "") or "a try"
        raise RecipeError(f"{where} cannot be sent to a worker process: {error}", hint=_NAMED) from None
    if b"__main__" in data and not hasattr(sys.modules["__main__"], "__file__"):
        raise RecipeError("what was defined in an interactive session cannot be sent to a worker", hint=_NAMED)
    return data


def _culprit(value: Any, path: str) -> str:
    """The innermost field that cannot be pickled, as `Quantize.calibration`."""
    items: list[tuple[str, Any]] = []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        owner = "" if isinstance(value, Job) else f"{type(value).__name__}."
        items = [(f"{owner}{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, list | tuple):
        items = [(path, item) for item in value]
    for where, item in items:
        try:
            pickle.dumps(item)
        except Exception:  # noqa: BLE001  # as above
            return _culprit(item, where)
    return path


def _run_packed(data: bytes) -> Outcome:
    job: Job = pickle.loads(data)  # noqa: S301  # from the process that started this one, never from a file
    return run(job)


def _pool(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    """What each worker does first: leave Ctrl-C to the parent, take one thread, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end())
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    _end()


def _end() -> None:
    """End this process at once, and leave no semaphore behind, of which Python would warn."""
    _exit_function()
    os._exit(1)


def _end_processes(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
