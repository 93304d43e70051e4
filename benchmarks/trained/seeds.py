"""A figure over several seeds, beside the same figure without the method."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from ..results import Row

SEEDS = (0, 1, 2)


def row(
    what: str,
    ours: Sequence[float],
    unit: str,
    *,
    without: Sequence[float] | None = None,
    name: str = "",
    goal: str = "",
    note: str = "",
) -> Row:
    """The mean over the seeds; the note gives each seed's figure and the spread, greatest less least.

    without, name: the figures of the same seeds without the method, and what that is called; the ratio is of the means.
    """
    each = ", ".join(f"{value:.4g}" for value in ours)
    spread = f"seeds {each}; spread {max(ours) - min(ours):.2g}"
    peer = None if without is None else mean(without)
    if without is not None:
        spread += f"; {name} {', '.join(f'{value:.4g}' for value in without)}"
    ratio = mean(ours) / peer if peer else None
    return Row(what, mean(ours), unit, peer, name, ratio, goal, f"{note}; {spread}" if note else spread)
