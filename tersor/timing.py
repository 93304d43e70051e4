"""Latency of programs, ONNX files and artifacts, measured in turns so that a drifting machine is fair to all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from tersor.backends.clock import Clock


@dataclass(frozen=True)
class Latency:
    """Seconds a call: the median and two percentiles of `runs` calls after a warm-up; clock: what they are worth."""

    median: float
    p90: float
    p99: float
    runs: int
    clock: Clock = Clock.MEASURED

    def to_json(self) -> dict[str, float | str]:
        """Plain data."""
        return {**asdict(self), "clock": self.clock.value}

    def speed(self, reference: Latency) -> float | None:
        """How many times as fast as the reference; None where a stand-in's time would be taken for a target's."""
        comparable = self.clock is reference.clock and self.clock in (Clock.MEASURED, Clock.MODELLED)
        return reference.median / self.median if comparable and self.median else None


def measure(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 2.0,
    warmup: int = 2,
    least: int = 5,
    clocks: Mapping[str, Callable[[], float]] | None = None,
) -> dict[str, Latency]:
    """Call each in turn, over and over, for `seconds` per entry; at least `least` rounds.

    clocks: for some entries, what to call instead: it runs once and gives the seconds by a clock of its own.
    """
    clocks = clocks or {}
    for call in calls.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds * len(calls)
    rounds = 0
    while rounds < least or time.perf_counter() < deadline:
        for name, call in calls.items():
            samples[name].append(clocks[name]() if name in clocks else _seconds(call))
        rounds += 1
    return {name: _latency(times) for name, times in samples.items()}


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _latency(times: Sequence[float]) -> Latency:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return Latency(statistics.median(times), cuts[89], cuts[98], len(times))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Limit torch to `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table(latencies: Mapping[str, Latency]) -> Table:
    """A row an entry, with its speed against the first; what an emulator or a simulation gave is marked."""
    result = Table(header_style="bold")
    for heading in ("what", "median", "90 %", "99 %", "runs", "speed"):
        result.add_column(heading, justify="left" if heading == "what" else "right")
    first = next(iter(latencies.values()))
    for name, found in latencies.items():
        times = (f"{value * 1e3:.2f} ms" for value in (found.median, found.p90, found.p99))
        speed = found.speed(first)
        mark = "" if speed is None else f"{speed:.2f} x"
        result.add_row(f"{name}{found.clock.mark}", *times, str(found.runs), mark)
    result.caption = warning(found.clock for found in latencies.values())
    return result


def warning(clocks: Iterable[Clock]) -> str | None:
    """What has to be said below a table with times of stand-ins; None where all times are of the targets."""
    stand_ins = sorted({str(clock) for clock in clocks if clock in (Clock.EMULATED, Clock.SIMULATED)})
    return f"{' and '.join(stand_ins)}: time of a stand-in, not of the target" if stand_ins else None
