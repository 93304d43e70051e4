"""Latency of programs, ONNX files and artifacts, measured in turns so that a drifting machine is fair to all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table


@dataclass(frozen=True)
class Latency:
    """Seconds a call: the median and two percentiles of `runs` calls after a warm-up."""

    median: float
    p90: float
    p99: float
    runs: int

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


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
    """A row an entry, with its speed against the first."""
    result = Table(header_style="bold")
    for heading in ("what", "median", "90 %", "99 %", "runs", "speed"):
        result.add_column(heading, justify="left" if heading == "what" else "right")
    first = next(iter(latencies.values())).median
    for name, found in latencies.items():
        times = (f"{value * 1e3:.2f} ms" for value in (found.median, found.p90, found.p99))
        result.add_row(name, *times, str(found.runs), f"{first / found.median:.2f} x")
    return result
