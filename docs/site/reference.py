"""Which public name stands on which page of the reference.

A page of docs/reference says `<!-- reference: tersor.passes.quantization -->`; there come the names that are defined in
that package, but for those that a page with a longer name claims.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "reference"
_OF_A_PASS = ["!^_", "!^run$", "!^expand$", "!^takes$", "!^gives$", "!^promise$"]
_MARK = re.compile(r"^<!-- reference: ([\w.]+) -->$", re.MULTILINE)


def filled(markdown: str) -> str:
    """The page with the entries of mkdocstrings in place of its marks."""
    return _MARK.sub(lambda mark: "\n\n".join(map(_entry, placed()[mark[1]])), markdown)


def _entry(name: str) -> str:
    """What mkdocstrings takes for a name. Of a pass, what every pass has is left out."""
    from tersor.passes.base import Pass

    kind = locate(name)
    if kind is Pass or not (isinstance(kind, type) and issubclass(kind, Pass)):
        return f"::: {name}"
    return f"::: {name}\n    options:\n      filters: {_OF_A_PASS}"


@cache
def placed() -> Mapping[str, list[str]]:
    """The names for each mark, in alphabetical order of the last part. Raises LookupError on a name without a page."""
    marks = [mark for page in FOLDER.glob("*.md") for mark in _MARK.findall(page.read_text(encoding="utf-8"))]
    found: dict[str, list[str]] = {mark: [] for mark in marks}
    for name, module in public_names().items():
        fitting = [mark for mark in marks if module == mark or module.startswith(f"{mark}.")]
        if not fitting:
            raise LookupError(f"no page of docs/reference takes {name}, which is defined in {module}")
        found[max(fitting, key=len)].append(name)
    return {mark: sorted(names, key=lambda name: name.rpartition(".")[2].lower()) for mark, names in found.items()}


def public_names() -> dict[str, str]:
    """Every public name with the module that defines it: what `tersor` exports, the passes, targets and errors."""
    import tersor
    from tersor.backends.registry import TARGETS
    from tersor.ir import errors
    from tersor.passes.registry import PASSES

    found = {f"tersor.{name}": _home(getattr(tersor, name)) for name in tersor.__all__}
    exported = [getattr(tersor, name) for name in tersor.__all__]
    registered = [*map(PASSES.find, PASSES.builtin), *map(TARGETS.find, TARGETS.builtin), *_classes(errors)]
    others = [kind for kind in registered if kind not in exported]
    return found | {f"{kind.__module__}.{kind.__qualname__}": kind.__module__ for kind in others}


def _home(value: Any) -> str:
    return str(getattr(value, "__module__", type(value).__module__))


def _classes(module: ModuleType) -> list[type]:
    return [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
