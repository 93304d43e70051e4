"""The learning rate as a function of the step, so that there is no state to keep."""

from __future__ import annotations

import math

from .options import Schedule, Training


def rate(options: Training, step: int, steps: int) -> float:
    """The share of the peak learning rate at `step` of `steps`, counted from 0."""
    warmup = round(options.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return _after_warmup(options.schedule, share, options.final)


def _after_warmup(schedule: Schedule, share: float, final: float) -> float:
    if schedule is Schedule.LINEAR:
        return 1 - share * (1 - final)
    if schedule is Schedule.COSINE:
        return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2
    if schedule is Schedule.STEP:
        return 0.1 ** ((share >= 0.5) + (share >= 0.75))
    return 1.0
