"""HTML and SVG as text. Whatever is not markup already is escaped, so that no name of a layer becomes a tag."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"br", "hr", "meta", "col"})
_PLANES = "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
_FORBIDDEN = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_PLANES}]")
"""Characters that neither XML nor HTML lets stand in a text."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """A value as text for a page or an attribute; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(value)).replace("\r", ""), quote=True))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element. Children are texts, markup, or iterables of them; None is left out.

    Attributes: `class_` is class, `aria_label` is aria-label; None and False are left out, True stands for itself.
    """
    given = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Markup:
    """Children one after another."""
    return Markup("".join(_text(child) for child in children))


def _text(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, str) or not isinstance(child, Iterable):
        return escaped(child)
    return joined(child)


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f' {name}="{name if value is True else escaped(value)}"'
