"""The page of a compression run: before and after, by step, by layer, what was tried, the recipe, the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tersor.backends.clock import Clock
from tersor.passes.report import decibels, quantity

from ..run_record import RunRecord, Step
from ..timing import warning
from .charts import panel
from .figures import count, exact, figure_of, metric_text, milliseconds, numbered, plural, size
from .layers import layer_section
from .markup import Markup, joined, tag
from .page import Section, Table, code, folded, page, words
from .points import points_section


def run_page(record: RunRecord) -> str:
    """The file."""
    found = [
        _before_and_after(record),
        _steps(record),
        layer_section(record),
        points_section(record),
        _recipe(record),
        _graph(record),
        _run(record),
    ]
    title = f"{record.name}: compressed for {record.target}" if record.target else f"{record.name}: compressed"
    lead = " · ".join(part for part in (record.started.replace("T", " "), _took(record.seconds)) if part)
    head = [tag("h1", title), tag("p", lead, class_="lead"), _facts(record)]
    return page(title, head, [section for section in found if section is not None])


# -- before and after ------------------------------------------------------------------------------------------------


def ratio_text(before: float, after: float) -> str:
    """How many times as small or as large something became."""
    if not (before and after):
        return ""
    factor = before / after
    if math.isclose(factor, 1, rel_tol=5e-4):
        return "as before"
    return f"{factor:.3g} × smaller" if factor > 1 else f"{1 / factor:.3g} × larger"


def _facts(record: RunRecord) -> Markup | None:
    """The few figures that a person looks for first."""
    if len(record.steps) < 2:
        return None
    first, last = record.steps[0], record.steps[-1]
    facts: list[tuple[str, Any, str]] = [("Size of parameters", size(last.bytes), f"from {quantity(first.bytes, 'B')}")]
    if last.macs != first.macs:
        facts.append(("Multiply-accumulates", count(last.macs), f"from {quantity(first.macs)}"))
    if last.latency is not None:
        before = "" if first.latency is None else f"from {first.latency.seconds * 1e3:.3g} ms{first.latency.clock.mark}"
        facts.append(("Latency", milliseconds(last.latency), before))
    if last.metric is not None and record.metric is not None:
        before = "" if first.metric is None else f"from {first.metric:.5g}"
        facts.append((record.metric.name, metric_text(last.metric), before))
    elif last.sqnr_total is not None:
        facts.append(
            ("SQNR of the outputs", figure_of(last.sqnr_total, decibels(last.sqnr_total)), "against the model given")
        )
    if record.integer_share is not None:
        share = figure_of(record.integer_share, f"{record.integer_share:.1%}")
        facts.append(("Runs in integer", share, "of the multiply-accumulates"))
    items = [tag("div", tag("dt", name), tag("dd", value, tag("small", note))) for name, value, note in facts]
    return tag("dl", items, class_="facts")


def _before_and_after(record: RunRecord) -> Section | None:
    if not record.steps:
        return None
    first, last = record.steps[0], record.steps[-1]
    rows: list[list[Any]] = [
        ["Size of parameters", size(first.bytes), size(last.bytes), ratio_text(first.bytes, last.bytes)],
        ["Parameters", count(first.parameters), count(last.parameters), ratio_text(first.parameters, last.parameters)],
        ["Multiply-accumulates", count(first.macs), count(last.macs), ratio_text(first.macs, last.macs)],
        ["Nodes of the graph", count(first.nodes), count(last.nodes), ratio_text(first.nodes, last.nodes)],
    ]
    if first.latency is not None or last.latency is not None:
        rows.append(["Latency", milliseconds(first.latency), milliseconds(last.latency), _speed(first, last)])
    if record.metric is not None:
        rows.append([record.metric.name, metric_text(first.metric), metric_text(last.metric), _gain(record)])
    if last.sqnr_total is not None:
        rows.append(["SQNR of the outputs", None, figure_of(last.sqnr_total, decibels(last.sqnr_total)), ""])
    if record.files:
        rows.append(["Files written", None, size(sum(record.files.values())), plural(len(record.files), "file")])
    headings = [("", ""), ("before", "num"), ("after", "num"), ("change", "num")]
    return Section(
        "change", "Before and after", [Table("The model as it was given, and as it is now", headings, rows).markup()]
    )


def _speed(first: Step, last: Step) -> str:
    if first.latency is None or last.latency is None:
        return ""
    clocks = {first.latency.clock, last.latency.clock}
    if not clocks <= {Clock.MEASURED} and not clocks <= {Clock.MODELLED}:
        return "not the target's time"
    factor = first.latency.seconds / last.latency.seconds if last.latency.seconds else math.inf
    return f"{factor:.3g} × faster" if factor >= 1 else f"{1 / factor:.3g} × slower"


def _gain(record: RunRecord) -> str:
    before, after = record.steps[0].metric, record.steps[-1].metric
    if before is None or after is None or not math.isfinite(after - before):
        return ""
    sign = "" if after == before else "+" if after > before else "-"
    floor = record.metric.floor if record.metric else None
    return f"{sign}{abs(after - before):.4g}" + ("" if floor is None else f" (floor {floor:g})")


# -- steps -----------------------------------------------------------------------------------------------------------


def _steps(record: RunRecord) -> Section | None:
    if len(record.steps) < 2:
        return None
    steps = record.steps
    metric = record.metric.name if record.metric else "metric"
    has_metric = any(step.metric is not None for step in steps)
    has_latency = any(step.latency is not None for step in steps)
    headings = [("step", "name")]
    headings += [(metric, "num")] if has_metric else []
    headings += [("SQNR", "num")] if any(step.sqnr_total is not None for step in steps) else []
    headings += [("latency", "num")] if has_latency else []
    headings += [("size", "num"), ("MACs", "num"), ("took", "num"), ("what it did", "text")]
    columns: dict[str, Callable[[Step], Any]] = {
        metric: lambda step: metric_text(step.metric),
        "SQNR": lambda step: None if step.sqnr_total is None else figure_of(step.sqnr_total, decibels(step.sqnr_total)),
        "latency": lambda step: milliseconds(step.latency),
        "size": lambda step: size(step.bytes),
        "MACs": lambda step: count(step.macs),
        "took": lambda step: figure_of(step.seconds, _took(step.seconds)),
        "what it did": _did,
    }
    rows = [
        [_step_name(place, step), *(columns[name](step) for name, _ in headings[1:])]
        for place, step in enumerate(steps)
    ]
    caption = (
        f"Each pass and the model after it, {len(steps) - 1} in all; SQNR is of the outputs against the model given"
    )
    note = warning(step.latency.clock for step in steps if step.latency is not None)
    body = [
        *_panels(record),
        Table(caption, headings, rows).markup(),
        tag("p", note, class_="note warn") if note else None,
    ]
    return Section("steps", "Step by step", body)


def _step_name(place: int, step: Step) -> Markup:
    options = [pair for pair in step.options.items() if pair[1] not in ("", "None")]
    inner = folded("options", words(options)) if options else None
    return joined([numbered(place, step.name), tag("small", step.promise) if step.promise else None, inner])


def _did(step: Step) -> Any:
    if step.notes:
        return [tag("div", note) for note in step.notes]
    return "the model as it was given" if not step.promise else None if step.modified else "nothing to do"


def _panels(record: RunRecord) -> list[Markup]:
    """Accuracy, latency and size, a point a step."""
    steps = record.steps
    accuracy: Sequence[float | None] = [step.metric for step in steps]
    name = record.metric.name if record.metric else "metric"
    if not any(value is not None for value in accuracy):
        accuracy, name = [step.sqnr_total for step in steps], "SQNR of the outputs, dB"
    latencies = [None if step.latency is None else step.latency.seconds * 1e3 for step in steps]
    stand_ins = [step.latency is not None and step.latency.clock is not Clock.MEASURED for step in steps]
    where = next((step.latency.where for step in reversed(steps) if step.latency is not None), "")
    panels = [
        (name, accuracy, []),
        (f"Latency, ms{f', on {where}' if where else ''}", latencies, stand_ins),
        ("Size of parameters, bytes", [float(step.bytes) for step in steps], []),
    ]
    found = []
    for label, values, hollow in panels:
        if sum(value is not None and math.isfinite(value) for value in values) < 2:
            continue
        named = zip(steps, values, strict=True)
        titles = [f"{place} {step.name}: {exact(value)}" for place, (step, value) in enumerate(named)]
        chart = panel(values, titles, f"{label}, by step", hollow)
        found.append(tag("figure", tag("figcaption", f"{label}, by step"), chart))
    return [tag("div", found, class_="panels")] if found else []


def _took(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


# -- the rest --------------------------------------------------------------------------------------------------------


def _recipe(record: RunRecord) -> Section | None:
    return Section("recipe", "Recipe", [code(record.recipe, "The recipe")]) if record.recipe else None


def _graph(record: RunRecord) -> Section | None:
    texts = [(name, text) for name, text in (("after", record.after), ("before", record.before)) if text]
    bodies = [
        folded(f"{name}, {text.count(chr(10)) + 1} lines", code(text, f"The graph {name}")) for name, text in texts
    ]
    return Section("graph", "Graph", bodies) if texts else None


def _run(record: RunRecord) -> Section | None:
    parts: list[Any] = [
        joined([tag("h3", title), words(pairs)])
        for title, pairs in (("Settings", record.settings), ("Machine", record.machine), ("Versions", record.versions))
        if pairs
    ]
    if record.files:
        parts.append(joined([tag("h3", "Files"), words((name, size(value)) for name, value in record.files.items())]))
    if record.notes:
        parts.append(joined([tag("h3", "What the target says"), [tag("p", note) for note in record.notes]]))
    return Section("run", "The run", parts) if parts else None
