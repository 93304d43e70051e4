"""Charts as SVG, coloured by the page's style: points with their front, a line a step, a bar a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Markup, joined, tag

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 14, 46
_WIDE, _NARROW = 760, 340
_LOGARITHMIC = 30.0
"""From this ratio of the largest cost to the smallest on, an axis is logarithmic."""


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot. number: its row in the table beside; title: what a pointer on it is told."""

    number: int
    x: float
    y: float
    title: str
    on_front: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of a profile. share: its height, 0 to 1; before: that of what it came from; kind: a class of the style."""

    share: float
    title: str
    before: float | None = None
    kind: str = ""


def finite(value: float | None) -> bool:
    """Whether a value can be drawn."""
    return value is not None and math.isfinite(value)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span a range: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, logarithmic: bool = False) -> Axis:
        """An axis with some room on both sides; logarithmic only where asked, and where it helps."""
        low, high = min(values), max(values)
        if logarithmic and low > 0 and high / low >= _LOGARITHMIC:
            room = (high / low) ** 0.06
            return cls(low / room, high * room, start, end, True)
        room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end)

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Where to write numbers."""
        if not self.logarithmic:
            return ticks(self.low, self.high, count)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        inside = [value for value in found if self.low <= value <= self.high]
        return (
            inside if len(inside) <= count + 2 else [v for v in inside if math.log10(v).is_integer()] or inside[:count]
        )


def scatter(dots: Sequence[Dot], x: str, y: str, label: str, line: bool = True) -> Markup:
    """The points, the front joined by steps; once for wide and once for narrow pages, of which one is shown."""
    usable = [dot for dot in dots if finite(dot.x) and finite(dot.y)]
    if not usable:
        return tag("p", "No point can be drawn.", class_="empty")
    both = ((_WIDE, 400, "wide"), (_NARROW, 330, "narrow"))
    return joined(plot(usable, x, y, label, width, height, kind, line) for width, height, kind in both)


def plot(
    dots: Sequence[Dot], x: str, y: str, label: str, width: int, height: int, kind: str = "", line: bool = True
) -> Markup:
    """One scatter plot of points that are all finite. line: join the front, if it is of this one cost alone."""
    across = Axis.around([dot.x for dot in dots], _LEFT, width - _RIGHT, logarithmic=True)
    up = Axis.around([dot.y for dot in dots], height - _BOTTOM, _TOP)
    return tag(
        "svg",
        tag("title", label),
        [_grid_line(across, up, value, 0) for value in across.ticks(6 if width > 500 else 4)],
        [_grid_line(across, up, value, 1) for value in up.ticks()],
        _words((_LEFT + width - _RIGHT) / 2, height - 8, x, "middle", "axis"),
        tag("text", y, transform=f"translate(14 {height / 2:.0f}) rotate(-90)", text_anchor="middle", class_="axis"),
        _front(dots, across, up) if line else None,
        # What matters is drawn last, over the rest.
        [_dot(dot, across, up) for dot in sorted(dots, key=lambda dot: (dot.on_front, dot.chosen))],
        viewBox=f"0 0 {width} {height}",
        class_=f"chart {kind}".strip(),
        role="img",
        aria_label=label,
    )


def _grid_line(across: Axis, up: Axis, value: float, which: int) -> Markup:
    if which == 0:
        at = f"{across.place(value):.1f}"
        line = tag("line", x1=at, x2=at, y1=f"{up.start:.1f}", y2=f"{up.end:.1f}", class_="grid")
        return joined([line, _words(across.place(value), up.start + 16, number(value), "middle", "tick")])
    at = f"{up.place(value):.1f}"
    line = tag("line", x1=f"{across.start:.1f}", x2=f"{across.end:.1f}", y1=at, y2=at, class_="grid")
    return joined([line, _words(across.start - 7, up.place(value) + 4, number(value), "end", "tick")])


def _front(dots: Sequence[Dot], across: Axis, up: Axis) -> Markup:
    """The line below which nothing on the front lies: flat to the next point, then up to it."""
    places = sorted((across.place(dot.x), up.place(dot.y)) for dot in dots if dot.on_front)
    if not places:
        return Markup()
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
    return tag("path", d=path, class_="front")


def _dot(dot: Dot, across: Axis, up: Axis) -> Markup:
    x, y = across.place(dot.x), up.place(dot.y)
    kind = "dot" + (" on" if dot.on_front else "") + (" chosen" if dot.chosen else "")
    marks = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="5", class_=kind)]
    if dot.chosen:
        marks.insert(0, tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="9", class_="ring"))
    if dot.on_front or dot.chosen:
        marks.append(_words(x + 10, y - 7, str(dot.number), "start", "number"))
    return tag("g", tag("title", dot.title), marks)


def panel(values: Sequence[float | None], titles: Sequence[str], label: str, hollow: Sequence[bool] = ()) -> Markup:
    """A value a step, joined by a line. titles: what a pointer is told. hollow: what is no measurement."""
    width = _NARROW
    height, base = 132, 106
    known = [(place, value) for place, value in enumerate(values) if value is not None and math.isfinite(value)]
    up = Axis.around([value for _, value in known], base, _TOP)
    across = Axis(0, max(1, len(values) - 1), _LEFT, width - _RIGHT)
    places = [(across.place(place), up.place(value)) for place, value in known]
    skip = max(1, math.ceil(len(values) / (width / 26)))
    shown = [place for place in range(len(values)) if place % skip == 0 or place == len(values) - 1]
    return tag(
        "svg",
        tag("title", label),
        [_grid_line(across, up, value, 1) for value in up.ticks(3)],
        [_words(across.place(place), base + 20, str(place), "middle", "tick") for place in shown],
        tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), class_="front"),
        [
            tag(
                "g",
                tag("title", titles[place]),
                tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="4", class_=_filled(place, hollow)),
            )
            for (place, _), (x, y) in zip(known, places, strict=True)
        ],
        viewBox=f"0 0 {width} {height}",
        class_="chart",
        role="img",
        aria_label=label,
    )


def _filled(place: int, hollow: Sequence[bool]) -> str:
    return "dot" if place < len(hollow) and hollow[place] else "dot on"


def profile(bars: Sequence[Bar], label: str, thin: bool = False) -> Markup:
    """A bar a layer, in order; it stretches to the width that there is, so it holds no text."""
    gap = 0.15 if len(bars) < 120 else 0.0
    marks = []
    for place, bar in enumerate(bars):
        marks.append(tag("rect", tag("title", bar.title), x=place, y=0, width=1, height=100, class_="catch"))
        for share, kind in ((bar.before, "before"), (bar.share, f"bar {bar.kind}".strip())):
            if share:
                high = max(1.5, 100 * min(1.0, share))
                place_of = {
                    "x": f"{place + gap / 2:g}",
                    "y": f"{100 - high:.2f}",
                    "width": f"{1 - gap:g}",
                    "height": f"{high:.2f}",
                }
                marks.append(tag("rect", **place_of, class_=kind))
    return tag(
        "svg",
        tag("title", label),
        marks,
        viewBox=f"0 0 {max(1, len(bars))} 100",
        preserveAspectRatio="none",
        class_="profile thin" if thin else "profile",
        role="img",
        aria_label=label,
    )


def meter(share: float, before: float | None = None, kind: str = "") -> Markup:
    """A bar in a table's cell; the figure stands beside it, so it is hidden from those who cannot see."""
    shares = [(before, "before"), (share, f"bar {kind}".strip())]
    inner = [tag("i", class_=name, style=f"width:{100 * min(1.0, part):.1f}%") for part, name in shares if part]
    return tag("span", inner, class_="meter", aria_hidden="true")


def number(value: float) -> str:
    """A figure at an axis, short: `1.5k`, `20M`, `0.25`."""
    for suffix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{suffix}"
    return f"{value:.6g}"


def _words(x: float, y: float, text: str, anchor: str, kind: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=kind)
