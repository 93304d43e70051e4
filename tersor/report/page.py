"""A page that stands alone: one HTML file that loads nothing, runs no script, and reads in light and dark."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .markup import Markup, joined, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Nothing is loaded and no script runs, should a text slip through as markup."""


@dataclass(frozen=True)
class Section:
    """A part of a page; `name` is what a link to it is called."""

    name: str
    title: str
    body: Sequence[Any]


@functools.cache
def style() -> str:
    """The style of pages and of pictures that stand alone."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def page(title: str, head: Sequence[Any], sections: Sequence[Section]) -> str:
    """The whole file."""
    links = tag("ul", [tag("li", tag("a", part.title, href=f"#{part.name}")) for part in sections])
    parts = [
        tag("section", tag("h2", part.title, id=part.name), part.body, aria_labelledby=part.name) for part in sections
    ]
    body = tag("body", tag("header", head, tag("nav", links, aria_label="On this page")), tag("main", parts))
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style())),
    )
    return f"<!DOCTYPE html>\n{tag('html', top, body, lang='en')}\n"


@dataclass(frozen=True)
class Table:
    """A table.

    headings: each a text and a class of the style, as `num` for figures. rows: cells, first the row's head.
    marked: the rows to set off. A wide one scrolls inside itself, by keyboard too.
    """

    caption: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Any]]
    marked: frozenset[int] = field(default_factory=frozenset)

    def markup(self) -> Markup:
        """The table in a frame that scrolls."""
        head = tag("tr", [tag("th", text, scope="col", class_=kind or None) for text, kind in self.headings])
        lines = [
            tag(
                "tr",
                [self._cell(place, cell) for place, cell in enumerate(row)],
                class_="on" if i in self.marked else None,
            )
            for i, row in enumerate(self.rows)
        ]
        table = tag("table", tag("caption", self.caption), tag("thead", head), tag("tbody", lines))
        return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=self.caption)

    def _cell(self, place: int, cell: Any) -> Markup:
        kind = self.headings[place][1] or None
        return tag("th", cell, scope="row", class_=kind) if place == 0 else tag("td", cell, class_=kind)


def words(pairs: Mapping[str, str] | Iterable[tuple[str, Any]]) -> Markup:
    """Names and what they stand for."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return tag("dl", [joined([tag("dt", name), tag("dd", value)]) for name, value in items], class_="words")


def code(text: str, label: str) -> Markup:
    """A text as it is, which scrolls inside itself."""
    return tag("pre", tag("code", text), tabindex="0", role="region", aria_label=label)


def folded(summary: str, *body: Any, shown: bool = False) -> Markup:
    """What a person opens."""
    return tag("details", tag("summary", summary), body, open_=shown)
