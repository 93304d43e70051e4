"""Pictures as files of their own: SVG in the style of the pages, PNG by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tersor.ir.errors import MissingDependencyError, RecipeError
from tersor.ir.whole_file import write_text

from .markup import Markup, tag
from .page import style


def save_picture(path: Path, makers: Mapping[str, Callable[[], str]], draw: Callable[[Any], None]) -> Path:
    """Write a picture in the form that the path's suffix says, whole or not at all.

    makers: the text by suffix. draw: draws a PNG on a matplotlib figure.

    Raises RecipeError for a suffix that is none of these, MissingDependencyError for a PNG without matplotlib, OSError
    where the file cannot be written.
    """
    if path.suffix == ".png":
        _save_png(path, draw)
    elif path.suffix in makers:
        write_text(path, makers[path.suffix]())
    else:
        forms = ", ".join([*makers, ".png"])
        raise RecipeError("not a picture that can be written", expected=forms, found=str(path))
    return path


def standalone(width: float, height: float, *inside: Any) -> str:
    """An SVG file: what is inside on the page's paper, light or dark as the reader has it."""
    paper = tag("rect", width=width, height=height, style="fill:var(--paper)")
    box = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": width,
        "height": height,
    }
    return f"{tag('svg', tag('style', Markup(style())), paper, inside, **box)}\n"


def _save_png(path: Path, draw: Callable[[Any], None]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = "pip install matplotlib, or write .html or .svg, which need nothing"
        raise MissingDependencyError("a PNG needs matplotlib", hint=hint) from error
    figure = Figure(layout="constrained")
    draw(figure)
    scratch = path.with_name(f".{path.name}.writing")
    try:
        figure.savefig(scratch, dpi=120, format="png")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
