"""What is claimed, what was measured for it, and when the one holds of the other."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

Values = tuple[float, ...]
"""A value a seed, or a run where nothing depends on a seed."""


class Side(enum.Enum):
    """Which way a bound holds."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True)
class Bound:
    """What a figure is to reach, in the figure's unit; `by`: who says so."""

    side: Side
    value: float
    by: str = "claimed"

    def holds(self, measured: float) -> bool:
        """Whether a measured figure keeps to it; a figure that is no number does not."""
        return measured >= self.value if self.side is Side.AT_LEAST else measured <= self.value

    def __str__(self) -> str:
        return f"{self.side.value} {self.value:g}"


@dataclass(frozen=True)
class Figure:
    """One measured quantity, with its method's absence beside it.

    measured: a value a seed; the figure is their mean, the spread their greatest less their least.
    wanted: the bound; None for a figure that stands beside others.
    without, absence: the same quantity without the method, and what that is called.
    """

    what: str
    measured: Values
    unit: str
    wanted: Bound | None = None
    without: Values = ()
    absence: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.measured:
            raise ValueError(f"{self.what}: expected a value a seed, found none")

    @property
    def mean(self) -> float:
        return mean(self.measured)

    @property
    def spread(self) -> float:
        return max(self.measured) - min(self.measured)

    @property
    def met(self) -> bool | None:
        """Whether the mean keeps to the bound; None where there is none."""
        return None if self.wanted is None else self.wanted.holds(self.mean)

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        bound = self.wanted
        return {
            "what": self.what,
            "unit": self.unit,
            "wanted": None if bound is None else {"side": bound.side.value, "value": bound.value, "by": bound.by},
            "measured": list(self.measured),
            "mean": self.mean,
            "spread": self.spread,
            "without": {"name": self.absence, "values": list(self.without), "mean": mean(self.without)}
            if self.without
            else None,
            "met": self.met,
            "note": self.note,
        }


@dataclass(frozen=True)
class Claim:
    """One claim of the article, and how it is measured here.

    claimed: in the article's terms. how: models, data and what stands beside. gap: what would close it, told only where
    a bound is not met. minutes: the time that it may take on two idle cores, trained models and all. measure: from the
    seeds and whether the run is a quick one to figures.
    """

    number: int
    claimed: str
    how: str
    gap: str
    minutes: float
    measure: Callable[[Sequence[int], bool], Sequence[Figure]]


def at_least(value: float, by: str = "claimed") -> Bound:
    """A bound from below."""
    return Bound(Side.AT_LEAST, value, by)


def at_most(value: float, by: str = "claimed") -> Bound:
    """A bound from above."""
    return Bound(Side.AT_MOST, value, by)
