"""Docstrings of the project as lists: a sentence that begins with the names of options is an item."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

from griffe import Class, Extension, Function, Object

_ITEM = re.compile(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ")
_INDENT = "    "


class OptionLists(Extension):
    """Turns `name: what it is` in the docstrings of classes and functions into items of a list."""

    def on_class_members(self, *, cls: Class, **kwargs: Any) -> None:
        """Rewrite a class's docstring by its fields."""
        _rewrite(cls, cls.members)

    def on_function_instance(self, *, func: Function, **kwargs: Any) -> None:
        """Rewrite a function's docstring by its parameters."""
        _rewrite(func, {parameter.name for parameter in func.parameters})


def _rewrite(thing: Object, names: Collection[str]) -> None:
    if thing.docstring is not None:
        thing.docstring.value = with_lists(thing.docstring.value, names)


def with_lists(text: str, names: Collection[str]) -> str:
    """The text with what is said of `names` as items, what follows indented below; code, which is indented, stays."""
    lines: list[str] = []
    within = False
    for line in _sentences(text, names):
        found = _ITEM.match(line)
        if found is not None and _known(found[1], names):
            lines += [""] if lines and lines[-1] and not within else []
            marked = ", ".join(f"`{name}`" for name in found[1].split(", "))
            lines.append(f"- {marked}: {line[found.end() :]}")
            within = True
        else:
            within = within and bool(line.strip())
            lines.append(f"{_INDENT}{line.strip()}" if within else line)
    return "\n".join(lines)


def _sentences(text: str, names: Collection[str]) -> Iterator[str]:
    """The lines, broken before each sentence that speaks of names."""
    for line in text.splitlines():
        starts = [] if line.startswith(" ") else [f.start() for f in _ITEM.finditer(line) if _known(f[1], names)]
        places = [0, *(start for start in starts if start), len(line)]
        yield from (line[begin:end].rstrip() for begin, end in pairwise(places))


def _known(listed: str, names: Collection[str]) -> bool:
    return all(name in names for name in listed.split(", "))
