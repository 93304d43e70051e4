"""The layers of a run's page: strips that show all of them at a glance, and the table with their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tersor.passes.report import decibels, quantity

from ..run_record import Layer, RunRecord
from .charts import Bar, meter, profile
from .figures import figure_of
from .markup import Markup, joined, tag
from .page import Section, Table

SILENT = 80.0
"""dB at which an error has no length: nobody sees it."""
_KINDS = 6
"""Colours that the style has for precisions; the last is for all that are left."""


def error_share(decibel: float | None) -> float:
    """The length of an error, 0 to 1: from 80 dB, which nobody sees, to 0 dB, where noise equals signal."""
    if decibel is None or math.isnan(decibel):
        return 0.0
    return min(1.0, max(0.0, 1 - decibel / SILENT))


def layer_section(record: RunRecord) -> Section | None:
    """The section; None where a record has no layers."""
    layers = record.layers
    if not layers:
        return None
    body = [tag("p", _intro(record), class_="note"), *_strips(layers), _legend(layers), _table(record)]
    return Section("layers", "Layer by layer", body)


def _intro(record: RunRecord) -> str:
    against = f" Errors are SQNR against {record.error_of}." if record.error_of else ""
    return f"{len(record.layers)} layers, in the order in which they run; a pointer on a bar names it.{against}"


def _strips(layers: Sequence[Layer]) -> list[Markup]:
    strips = [
        _before_after("Bytes", "B", [(layer.name, layer.bytes, layer.bytes_before or 0) for layer in layers]),
        _before_after(
            "Multiply-accumulates", "", [(layer.name, layer.macs, layer.macs_before or 0) for layer in layers]
        ),
    ]
    if any(layer.error is not None for layer in layers):
        strips.append(_strip("Error", "taller is worse: 80 dB to 0 dB", [
            Bar(error_share(layer.error), f"{layer.name}: {decibels(layer.error) or 'not compared'}", kind="bad")
            for layer in layers
        ]))  # fmt: skip
    if any(layer.density is not None and layer.density < 1 for layer in layers):
        strips.append(_strip("Zeros", "share of the weight", [
            Bar(1 - (1 if layer.density is None else layer.density), f"{layer.name}: {_zeros(layer)} {layer.pattern}")
            for layer in layers
        ]))  # fmt: skip
    kinds = precision_kinds(layers)
    bars = [Bar(1.0, f"{layer.name}: {layer.precision}", kind=f"kind-{kinds[layer.precision]}") for layer in layers]
    return [*strips, _strip("Precision", "as the legend says", bars, thin=True)]


def _before_after(title: str, unit: str, rows: Sequence[tuple[str, int, int]]) -> Markup:
    """A strip with what each layer has now before what it had."""
    most = max(max(now, before) for _, now, before in rows) or 1
    bars = [Bar(now / most, f"{name}: {quantity(now, unit)}", before / most) for name, now, before in rows]
    return _strip(title, f"up to {quantity(most, unit)}; grey: before", bars)


def precision_kinds(layers: Sequence[Layer]) -> dict[str, int]:
    """A colour for each precision, the most frequent first; the rare ones share the last."""
    names = [layer.precision for layer in layers]
    ordered = sorted(dict.fromkeys(names), key=lambda name: -names.count(name))
    return {name: min(place, _KINDS - 1) for place, name in enumerate(ordered)}


def _strip(title: str, note: str, bars: Sequence[Bar], thin: bool = False) -> Markup:
    words = tag("p", title, tag("br"), tag("span", note, class_="note"))
    chart = profile(bars, f"{title} by layer", thin)
    return tag("div", words, chart, class_="strip")


def _legend(layers: Sequence[Layer]) -> Markup:
    names = [layer.precision for layer in layers]
    items = [
        tag("li", tag("span", class_=f"key kind-{kind}"), f"{name or 'none'} ({names.count(name)})")
        for name, kind in precision_kinds(layers).items()
    ]
    return tag("ul", items, class_="legend", aria_label="Precisions")


def _table(record: RunRecord) -> Markup:
    layers = record.layers
    heaviest = max((layer.bytes for layer in layers), default=0) or 1
    busiest = max((layer.macs for layer in layers), default=0) or 1
    errors = any(layer.error is not None for layer in layers)
    zeros = any(layer.density is not None and layer.density < 0.9995 for layer in layers)
    headings = [("layer", "name"), ("bytes", "num"), ("MACs", "num")]
    headings += [("error", "num")] if errors else []
    headings += [("zeros", "num")] if zeros else []
    headings += [("precision", "tag"), ("runs in", "text")]
    rows = []
    for layer in layers:
        row: list[Any] = [_name(layer), _bytes(layer, heaviest), _macs(layer, busiest)]
        row += [_error(layer)] if errors else []
        row += [_sparsity(layer)] if zeros else []
        rows.append([*row, layer.precision, [layer.runs_in, tag("small", layer.reason) if layer.reason else None]])
    return Table(f"Every layer, {len(layers)} in all", headings, rows).markup()


def _name(layer: Layer) -> Markup:
    place = f"{layer.operator}, {layer.module}" if layer.module else layer.operator
    return joined([layer.name, tag("small", place)])


def _bytes(layer: Layer, heaviest: int) -> Markup:
    return joined([figure_of(layer.bytes, quantity(layer.bytes, "B")), meter(layer.bytes / heaviest)])


def _macs(layer: Layer, busiest: int) -> Markup:
    return joined([figure_of(layer.macs, quantity(layer.macs)), meter(layer.macs / busiest)])


def _error(layer: Layer) -> Markup | None:
    if layer.error is None:
        return None
    return joined([figure_of(layer.error, decibels(layer.error)), meter(error_share(layer.error), kind="bad")])


def _zeros(layer: Layer) -> str:
    return "" if layer.density is None else f"{1 - layer.density:.1%}"


def _sparsity(layer: Layer) -> Markup | None:
    if layer.density is None:
        return None
    pattern = tag("small", layer.pattern) if layer.pattern else None
    return joined([figure_of(layer.density, _zeros(layer)), meter(1 - layer.density), pattern])
