"""What was tried: the points as a plot with their Pareto front, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tersor.passes.training.options import Better

from ..pareto import pareto_front
from ..run_record import Point, RunRecord
from ..sweeps.table import COST_NAMES
from ..timing import warning
from .charts import Dot, scatter
from .figures import count, exact, figure_of, metric_text, numbered, plural, size
from .markup import Markup, joined, tag
from .page import Section, Table

_COSTS = ("latency_ms", "file_bytes", "bytes", "macs", "parameters", "activation_bytes")
"""By what points are plotted: the first of these that all have that were judged."""
COST_WORDS = {
    "latency_ms": "latency, ms",
    "file_bytes": "files, bytes",
    "bytes": "size, bytes",
    "macs": "multiply-accumulates",
    "parameters": "parameters",
    "activation_bytes": "activations, bytes",
}


def points_section(record: RunRecord) -> Section | None:
    """The section of a run; None where nothing else was tried."""
    if not record.points:
        return None
    better = record.metric.better if record.metric else Better.HIGHER
    name = record.metric.name if record.metric else "metric"
    return Section("tried", "What was tried", points_body(record.points, name, better))


def points_body(
    points: Sequence[Point],
    quality: str,
    better: Better,
    costs: Sequence[str] = (),
    said: Mapping[int, str] | None = None,
) -> list[Any]:
    """The plot and the table of points. said: what is written in place of a metric, by place."""
    every = dict.fromkeys(cost for point in points for cost in point.costs)
    judged = [point for point in points if point.metric is not None and not point.error]
    shared = [c for c in every if all(c in point.costs for point in judged)] or list(every)
    cost = next((c for c in (*costs, *_COSTS, *every) if c in shared), None)
    front = front_of(points, [cost] if cost and not costs else [c for c in costs if c in every], better)
    body: list[Any] = []
    if cost is not None:
        label = f"{quality} against {COST_WORDS.get(cost, cost)}; the points on the front are filled and numbered"
        dots = [
            Dot(place, point.costs[cost], point.metric, _title(point), place in front, point.chosen)
            for place, point in enumerate(points, start=1)
            if cost in point.costs and point.metric is not None and not point.error
        ]
        plot = scatter(dots, COST_WORDS.get(cost, cost), quality, label, len(costs) < 2)
        body.append(tag("figure", plot, tag("figcaption", _legend(points, costs))))
    body.append(_points_table(points, quality, list(every), cost, front, said or {}))
    note = warning(point.clock for point in points if "latency_ms" in point.costs)
    return [*body, tag("p", note, class_="note warn") if note else None]


def front_of(points: Sequence[Point], costs: Sequence[str], better: Better) -> frozenset[int]:
    """The numbers, from 1, of the points that no other beats in these costs and the metric."""
    usable = [
        (place, [point.costs[cost] for cost in costs], point.metric if better is Better.HIGHER else -point.metric)
        for place, point in enumerate(points, start=1)
        if not point.error and point.metric is not None and costs and all(cost in point.costs for cost in costs)
    ]
    on = pareto_front([row for _, row, _ in usable], [value for _, _, value in usable])
    return frozenset(place for (place, _, _), inside in zip(usable, on, strict=True) if inside)


def _legend(points: Sequence[Point], costs: Sequence[str]) -> str:
    chosen = "; the ring is what was chosen" if any(point.chosen for point in points) else ""
    if len(costs) > 1:
        names = ", ".join(COST_NAMES.get(cost, cost) for cost in costs)
        return f"Filled points are on the Pareto front of {names} together{chosen}."
    return f"Filled points are on the Pareto front: no other is at least as good in both and better in one{chosen}."


def _title(point: Point) -> str:
    costs = ", ".join(f"{name} {value:.6g}" for name, value in point.costs.items())
    return f"{point.name}: {exact(point.metric)}; {costs}"


def _points_table(
    points: Sequence[Point],
    quality: str,
    costs: Sequence[str],
    axis: str | None,
    front: frozenset[int],
    said: Mapping[int, str],
) -> Markup:
    """A row a point. Costs that are the same for all say nothing and are left out; axis: the one that is plotted."""
    shown = [cost for cost in costs if cost == axis or len({p.costs[cost] for p in points if cost in p.costs}) > 1]
    why = any(point.reason for point in points)
    headings = [
        ("what", "name"),
        ("front", ""),
        (quality, "num"),
        *((COST_NAMES.get(cost, cost), "num") for cost in shown),
    ]
    headings += [("why", "text")] if why else []
    rows = []
    for place, point in enumerate(points, start=1):
        mark = ("on the front" if place in front else "") + (", chosen" if point.chosen else "")
        judged = metric_text(point.metric)
        if place in said and point.metric is not None:
            judged = figure_of(point.metric, said[place])
        row: list[Any] = [
            _named(place, point),
            mark.strip(", "),
            judged,
            *(_cost(cost, point) for cost in shown),
        ]
        rows.append([*row, point.reason] if why else row)
    return Table(plural(len(points), "point"), headings, rows, frozenset(place - 1 for place in front)).markup()


def _named(place: int, point: Point) -> Markup:
    error = tag("small", point.error, class_="warn") if point.error else None
    return joined([numbered(place, point.name), error])


def _cost(cost: str, point: Point) -> Markup | None:
    value = point.costs.get(cost)
    if value is None:
        return None
    if cost == "latency_ms":
        return figure_of(value, f"{value:.3g} ms{point.clock.mark}")
    return size(value) if cost.endswith("bytes") else count(value)
