"""What a program, and what products alone, cost on a target."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tersor.backends.base import Artifact, Backend
from tersor.ir.example import example_of
from tersor.ir.program import Program
from tersor.passes.pruning.latency import LatencyTable

from .lowering import lower, resolve
from .run_record import Timing


@dataclass(frozen=True)
class TargetClock:
    """Seconds of one call on a target: lowered, warmed up, the fastest of some calls, which others disturb least.

    seconds: how long to measure each program. threads: of the target's runtime, where it can be told.
    """

    target: Backend
    seconds: float = 0.05
    threads: int | None = None

    def __call__(self, program: Program) -> float:
        """Lower and run."""
        with tempfile.TemporaryDirectory(prefix="tersor-latency-") as folder:
            artifact = lower(program, self.target, Path(folder) / "artifact")
            set_threads = getattr(artifact, "set_threads", None)
            if self.threads is not None and set_threads is not None:
                set_threads(self.threads)
            inputs = example_of(program)
            samples: list[float] = []
            with torch.no_grad():
                for _ in range(3):
                    artifact.run_flat(inputs)
                deadline = time.perf_counter() + self.seconds
                while len(samples) < 5 or time.perf_counter() < deadline:
                    started = time.perf_counter()
                    artifact.run_flat(inputs)
                    samples.append(time.perf_counter() - started)
            return min(samples)


def latency_table(
    program: Program, target: str | Backend = "onnxruntime", *, seconds: float = 0.05, threads: int | None = None
) -> LatencyTable:
    """Measure what a program's products cost on a target, each at some sizes, for `Latency(share, table)`.

    It takes about `seconds` and a lowering for every product and size: half a minute for a small network. Products that
    are alike are measured once. threads: of the target's runtime, where it has such a thing; None leaves it to that.
    """
    return LatencyTable.measure(program, TargetClock(resolve(target), seconds, threads))


def target_latency(program: Program, target: str | Backend, seconds: float = 0.2, threads: int = 1) -> Timing:
    """Lower a program and measure it on its example. Raises LoweringError, PassError, MissingDependencyError."""
    backend = resolve(target)
    with tempfile.TemporaryDirectory(prefix="tersor-latency-") as folder:
        return artifact_latency(
            lower(program, backend, Path(folder) / "artifact"), example_of(program), seconds, threads
        )


def artifact_latency(artifact: Artifact, inputs: Sequence[Tensor], seconds: float = 0.2, threads: int = 1) -> Timing:
    """The median of calls by the target's own clock for `seconds`, three at least, after one to warm up."""
    set_threads = getattr(artifact, "set_threads", None)
    if set_threads is not None:
        set_threads(threads)
    artifact.run_flat(inputs)
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < deadline:
        samples.append(artifact.latency(inputs))
    count = "" if set_threads is None else f", {threads} thread{'s' if threads > 1 else ''}"
    return Timing(statistics.median(samples), artifact.clock, f"{artifact.report.target}{count}")
