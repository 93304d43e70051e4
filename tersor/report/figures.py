"""Figures as a page writes them: in words, with the exact value beside for machines."""

from __future__ import annotations

import math

from tersor.passes.report import quantity

from ..run_record import Timing
from .markup import Markup, joined, tag


def figure_of(value: float | int, text: str) -> Markup:
    """A figure in words that carries its exact value."""
    return tag("data", text, value=repr(value))


def size(value: float) -> Markup:
    """Bytes in words."""
    return figure_of(value, quantity(value, "B"))


def count(value: float) -> Markup:
    """A number of things in words."""
    return figure_of(value, quantity(value))


def milliseconds(value: Timing | None) -> Markup | None:
    """A latency in words, marked where it is no measurement on the target."""
    if value is None:
        return None
    return figure_of(value.seconds, f"{value.seconds * 1e3:.3g} ms{value.clock.mark}")


def metric_text(value: float | None) -> Markup | None:
    """A metric in words."""
    return None if value is None else figure_of(value, "NaN" if math.isnan(value) else f"{value:.5g}")


def numbered(place: int, name: str) -> Markup:
    """A name with the number that a chart calls it by."""
    return joined([tag("span", place, class_="no"), " ", name])


def plural(count: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def exact(value: float | None) -> str:
    """A figure for a pointer to show."""
    return "not known" if value is None else f"{value:.6g}"
