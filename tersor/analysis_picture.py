"""An analysis as a picture: a bar a node, as long as its part of the noise at the outputs, and its errors beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report.charts import meter
from .report.figures import figure_of
from .report.layers import SILENT, error_share
from .report.markup import Markup, joined, tag
from .report.page import Section, Table, page
from .report.picture import save_picture, standalone

if TYPE_CHECKING:
    from .analysis import Analysis, NodeAnalysis

_ROW, _LEFT, _BAR, _RIGHT, _TOP = 20, 260, 420, 300, 74
_COLUMNS = (("precision", 12), ("own", 90), ("share", 160), ("clipped", 220))
"""What stands right of the bars, and how far."""


def save(analysis: Analysis, path: Path) -> Path:
    """Write `.html`, `.svg` or `.png`. Raises as `save_picture` does."""
    makers = {".html": lambda: _page(analysis), ".svg": lambda: _svg(analysis)}
    return save_picture(path, makers, lambda figure: _draw(analysis, figure))


def length(row: NodeAnalysis) -> float:
    """The length of a bar, 0 to 1: from 80 dB at the outputs, which nobody sees, to 0 dB, where noise equals signal."""
    return error_share(row.output)


def _page(analysis: Analysis) -> str:
    marked = {row.node for row in analysis.worst}
    headings = [("node", "name"), ("at the outputs", "num"), ("own", "num"), ("here", "num"), ("share", "num")]
    headings += [("clipped", "num"), ("precision", "tag")]
    rows = [_cells(row) for row in analysis.rows]
    set_off = frozenset(place for place, row in enumerate(analysis.rows) if row.node in marked)
    caption = "SQNR of the outputs when this node alone is quantized; the nodes that matter are set off"
    title = f"{analysis.name}: where quantization costs accuracy"
    head = [tag("h1", title), tag("p", f"Outputs at {_decibels(analysis.sqnr)}. {_summary(analysis)}.", class_="lead")]
    return page(title, head, [Section("nodes", "Node by node", [Table(caption, headings, rows, set_off).markup()])])


def _cells(row: NodeAnalysis) -> list[Any]:
    place = f"{row.operator}, {row.module}" if row.module else row.operator
    figures = [figure_of(value, _decibels(value)) for value in (row.output, row.own, row.here)]
    bar = joined([figures[0], meter(length(row), kind="bad")])
    clipped = None if row.clipped is None else figure_of(row.clipped, f"{row.clipped:.2%}")
    share = figure_of(row.share, f"{row.share:.1%}")
    return [joined([row.node, tag("small", place)]), bar, *figures[1:], share, clipped, row.precision]


def _svg(analysis: Analysis) -> str:
    width, height = _LEFT + _BAR + _RIGHT, _TOP + _ROW * len(analysis.rows) + 16
    marked = {row.node for row in analysis.worst}
    parts = [
        tag("text", f"{analysis.name}: outputs at {_decibels(analysis.sqnr)}", x=12, y=22, class_="number"),
        tag("text", _summary(analysis), x=12, y=42),
        tag("text", "error at the outputs when this node alone is quantized", x=_LEFT, y=62),
        *(tag("text", name, x=_LEFT + _BAR + right, y=62) for name, right in _COLUMNS),
    ]
    for step in range(0, int(SILENT) + 1, 20):
        x = _LEFT + _BAR * (1 - step / SILENT)
        parts.append(tag("line", x1=x, y1=_TOP - 6, x2=x, y2=height - 14, class_="grid"))
        parts.append(tag("text", f"{step} dB", x=x, y=height - 3, text_anchor="middle"))
    parts += [_bar(row, _TOP + place * _ROW, row.node in marked) for place, row in enumerate(analysis.rows)]
    return standalone(width, height, tag("g", parts, style="font:12px system-ui,sans-serif"))


def _bar(row: NodeAnalysis, y: float, marked: bool) -> Markup:
    long = _BAR * length(row)
    name = row.node if len(row.node) <= 36 else f"{row.node[:17]}…{row.node[-18:]}"
    hover = f"{row.node} ({row.operator}) {row.module}: here {_decibels(row.here)}"
    base = y + 13
    texts = (row.precision, _decibels(row.own), f"{row.share:.1%}", "" if row.clipped is None else f"{row.clipped:.2%}")
    return tag(
        "g",
        tag("title", hover),
        tag("text", name, x=_LEFT - 8, y=base, text_anchor="end", class_="number" if marked else None),
        tag("rect", x=_LEFT, y=y + 3, width=f"{long:.1f}", height=_ROW - 6, class_="bar bad" if marked else "bar"),
        tag("text", _decibels(row.output), x=f"{_LEFT + long + 4:.1f}", y=base, style="font-size:10px"),
        [tag("text", text, x=_LEFT + _BAR + right, y=base) for text, (_, right) in zip(texts, _COLUMNS, strict=True)],
    )


def _draw(analysis: Analysis, figure: Any) -> None:
    """The bars alone."""
    rows = analysis.rows
    marked = {row.node for row in analysis.worst}
    figure.set_size_inches(10, 1.2 + 0.22 * len(rows))
    axes = figure.subplots()
    colors = ["#c4602f" if row.node in marked else "#2c8296" for row in rows]
    axes.barh(range(len(rows)), [length(row) for row in rows], color=colors)
    axes.set_yticks(range(len(rows)), [row.node for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    steps = range(0, int(SILENT) + 1, 20)
    axes.set_xticks([1 - step / SILENT for step in steps], [f"{step} dB" for step in steps])
    axes.set_xlabel("SQNR of the outputs when this node alone is quantized")
    axes.set_title(f"{analysis.name}: outputs at {_decibels(analysis.sqnr)}", loc="left")


def _summary(analysis: Analysis) -> str:
    worst = analysis.worst
    if not worst:
        return "no node moves the outputs"
    names = ", ".join(row.node for row in worst)
    names = names if len(names) < 110 else f"{names[:107]}..."
    return f"{names}: {sum(row.share for row in worst):.0%} of the noise at the outputs"


def _decibels(value: float) -> str:
    return "unmoved" if value == math.inf else f"{value:.1f} dB"
