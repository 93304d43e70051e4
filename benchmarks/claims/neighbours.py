"""How much of the machine other programs took while something ran: timings are worth little where that is much."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)
"""Places of user, nice, system, irq, softirq and steal; the last is what other virtual machines took."""


@dataclass(frozen=True)
class Work:
    """Seconds so far: on the clock, of all cores (None where the system does not say), and of this program."""

    clock: float
    machine: float | None
    own: float

    @classmethod
    def now(cls, stat: Path = STAT) -> Work:
        """Processes that this one started count as its own when they have ended."""
        return cls(time.perf_counter(), _machine(stat), sum(os.times()[:4]))

    def others_since(self, begun: Work) -> float:
        """Cores that others kept busy, on average, between two moments; 0 where it cannot be known."""
        if self.machine is None or begun.machine is None:
            return 0.0
        others = (self.machine - begun.machine) - (self.own - begun.own)
        return max(0.0, others / (self.clock - begun.clock))


def _machine(stat: Path) -> float | None:
    try:
        ticks = stat.read_text(encoding="ascii").splitlines()[0].split()[1:]
        return sum(int(ticks[place]) for place in _BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None
