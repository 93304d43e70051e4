"""The Pareto front of a sweep as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tersor.passes.training.options import Better

from ..sweeps.table import Sweep
from .charts import Dot, finite, plot
from .markup import tag
from .picture import save_picture, standalone
from .points import COST_WORDS
from .sweep_page import sweep_page

_WIDTH, _HEIGHT = 760, 400


def save_sweep(found: Sweep, path: Path) -> Path:
    """Write `.html`, the whole page, or the plot as `.svg` or `.png`. Raises as `save_picture` does."""
    makers = {".html": lambda: sweep_page(found), ".svg": lambda: _svg(found)}
    return save_picture(path, makers, lambda figure: _draw(found, figure))


def _dots(found: Sweep) -> list[Dot]:
    cost = found.definition.costs[0]
    front = {row.key for row in found.front}
    dots = []
    for number, row in enumerate(found.rows, start=1):
        value, price = found.quality(row), row.costs.get(cost)
        if not row.error and value is not None and price is not None and finite(value) and finite(price):
            dots.append(Dot(number, price, value, f"{row.name}: {value:.6g}", row.key in front))
    return dots


def _labels(found: Sweep) -> tuple[str, str]:
    cost = found.definition.costs[0]
    return COST_WORDS.get(cost, cost), "SQNR, dB" if found.definition.metric is None else found.quality_name


def _svg(found: Sweep) -> str:
    x, y = _labels(found)
    dots = _dots(found)
    title = f"{found.definition.name}: {y} against {x}"
    if not dots:
        return standalone(_WIDTH, 60, tag("text", "No point can be drawn.", x=20, y=34))
    return standalone(_WIDTH, _HEIGHT, plot(dots, x, y, title, _WIDTH, _HEIGHT, line=len(found.definition.costs) < 2))


def _draw(found: Sweep, figure: Any) -> None:
    figure.set_size_inches(8, 5)
    axes = figure.subplots()
    x, y = _labels(found)
    dots = _dots(found)
    rest, front = [d for d in dots if not d.on_front], sorted((d for d in dots if d.on_front), key=lambda d: d.x)
    axes.scatter([d.x for d in rest], [d.y for d in rest], facecolors="white", edgecolors="#59636e", label="tried")
    better = found.definition.metric.better if found.definition.metric else Better.HIGHER
    label = f"Pareto front ({y} {better.value}, {x} lower)"
    form = "o-" if len(found.definition.costs) < 2 else "o"
    axes.plot([d.x for d in front], [d.y for d in front], form, drawstyle="steps-post", color="#2c8296", label=label)
    for dot in front:
        axes.annotate(str(dot.number), (dot.x, dot.y), xytext=(6, 5), textcoords="offset points")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    axes.set_title(f"{found.definition.name}: {len(found.rows)} tries", loc="left")
