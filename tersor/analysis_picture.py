"""An analysis as a picture: a bar a node, as long as its part of the noise at the outputs, and its errors beside it."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.ir.errors import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    from .analysis import Analysis, NodeAnalysis

_ROW, _LEFT, _BAR, _RIGHT, _TOP = 20, 260, 420, 300, 74
_PLAIN, _MARKED, _INK, _FAINT = "#4878a8", "#c0392b", "#222222", "#777777"
_SCALE = 80.0
"""dB at which a bar has no length: a node whose error nobody sees."""


def save(analysis: Analysis, path: Path) -> Path:
    """Write the picture in the form that the path's suffix says.

    Raises RecipeError for a suffix that is none of these, MissingDependencyError for a PNG without matplotlib.
    """
    makers = {".svg": _svg, ".html": _html}
    if path.suffix == ".png":
        _png(analysis, path)
        return path
    if path.suffix not in makers:
        raise RecipeError("not a picture that can be written", expected=".html, .svg or .png", found=str(path))
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(makers[path.suffix](analysis), encoding="utf-8")
    scratch.replace(path)
    return path


def length(row: NodeAnalysis) -> float:
    """The length of a bar, 0 to 1: from 80 dB at the outputs, which nobody sees, to 0 dB, where noise equals signal."""
    if math.isinf(row.output):
        return 0.0 if row.output > 0 else 1.0
    return min(1.0, max(0.0, 1 - row.output / _SCALE))


def _svg(analysis: Analysis) -> str:
    width, height = _LEFT + _BAR + _RIGHT, _TOP + _ROW * len(analysis.rows) + 16
    marked = {row.node for row in analysis.worst}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 22, f"{analysis.name}: outputs at {_decibels(analysis.sqnr)}", size=15),
        _text(12, 42, _summary(analysis), color=_FAINT),
        _text(_LEFT, 62, "error at the outputs when this node alone is quantized", color=_FAINT),
        _text(_LEFT + _BAR + 12, 62, "precision", color=_FAINT),
        _text(_LEFT + _BAR + 90, 62, "own", color=_FAINT),
        _text(_LEFT + _BAR + 160, 62, "share", color=_FAINT),
        _text(_LEFT + _BAR + 220, 62, "clipped", color=_FAINT),
    ]
    for step in range(0, int(_SCALE) + 1, 20):
        x = _LEFT + _BAR * (1 - step / _SCALE)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 14}" stroke="#e4e4e4"/>')
        parts.append(_text(x, height - 3, f"{step} dB", color=_FAINT, anchor="middle", size=10))
    for place, row in enumerate(analysis.rows):
        parts += _bar(row, _TOP + place * _ROW, row.node in marked)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: NodeAnalysis, y: float, marked: bool) -> list[str]:
    color = _MARKED if marked else _PLAIN
    long = _BAR * length(row)
    name = row.node if len(row.node) <= 36 else f"{row.node[:17]}…{row.node[-18:]}"
    hover = f"{row.node} ({row.operator}) {row.module}: here {_decibels(row.here)}"
    base = y + 13
    clipped = "" if row.clipped is None else f"{row.clipped:.2%}"
    return [
        f"<g><title>{escape(hover)}</title>",
        _text(_LEFT - 8, base, name, anchor="end", color=_MARKED if marked else _INK),
        f'<rect x="{_LEFT}" y="{y + 3}" width="{long:.1f}" height="{_ROW - 6}" fill="{color}"/>',
        _text(_LEFT + long + 4, base, _decibels(row.output), size=10, color=_FAINT),
        _text(_LEFT + _BAR + 12, base, row.precision),
        _text(_LEFT + _BAR + 90, base, _decibels(row.own)),
        _text(_LEFT + _BAR + 160, base, f"{row.share:.1%}"),
        _text(_LEFT + _BAR + 220, base, clipped),
        "</g>",
    ]


def _text(x: float, y: float, text: str, *, color: str = _INK, anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{escape(text)}</text>"


def _html(analysis: Analysis) -> str:
    title = escape(f"{analysis.name}: where quantization costs accuracy")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>body{{margin:16px;background:#fff}}</style></head><body>\n{_svg(analysis)}</body></html>\n"
    )


def _png(analysis: Analysis, path: Path) -> None:
    """The bars alone, by matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a PNG needs matplotlib", hint="pip install matplotlib, or write .html or .svg, which need nothing"
        ) from error
    rows = analysis.rows
    marked = {row.node for row in analysis.worst}
    figure: Any = Figure(figsize=(10, 1.2 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(places, [length(r) for r in rows], color=[_MARKED if r.node in marked else _PLAIN for r in rows])
    axes.set_yticks(places, [row.node for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    steps = range(0, int(_SCALE) + 1, 20)
    axes.set_xticks([1 - step / _SCALE for step in steps], [f"{step} dB" for step in steps])
    axes.set_xlabel("SQNR of the outputs when this node alone is quantized")
    axes.set_title(f"{analysis.name}: outputs at {_decibels(analysis.sqnr)}", loc="left")
    figure.savefig(path, dpi=120)


def _summary(analysis: Analysis) -> str:
    worst = analysis.worst
    if not worst:
        return "no node moves the outputs"
    names = ", ".join(row.node for row in worst)
    names = names if len(names) < 110 else f"{names[:107]}..."
    return f"{names}: {sum(row.share for row in worst):.0%} of the noise at the outputs"


def _decibels(value: float) -> str:
    return "unmoved" if value == math.inf else f"{value:.1f} dB"
