"""Every public name says what it is: a docstring, with every option, parameter and member in it."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest

import tersor as ts

ROOT = Path(__file__).resolve().parents[1]
OVERRIDDEN = {"densities", "emit", "expand", "gather", "missing", "open", "passes", "run", "score", "supports"}
"""Methods that an abstract class documents for all that derive from it."""


def public_names() -> list[str]:
    spec = importlib.util.spec_from_file_location("site_reference", ROOT / "docs" / "site" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sorted(module.public_names())


NAMES = public_names()


def wanted(thing: Any) -> Iterable[str]:
    """The names that a docstring has to speak of."""
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return [member.name for member in thing]
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing) if field.init and not field.name.startswith("_")]
    return [] if isinstance(thing, type) else inspect.signature(thing).parameters


def text_of(thing: Any) -> str:
    """What is said of it; a class inherits what is said of its bases' fields."""
    kinds = thing.__mro__ if isinstance(thing, type) else [thing]
    return " ".join(kind.__doc__ or "" for kind in kinds)


def undocumented_methods(kind: type) -> Iterator[str]:
    for name, method in vars(kind).items():
        if inspect.isfunction(method) and not name.startswith("_") and name not in OVERRIDDEN and not method.__doc__:
            yield name


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented(name: str) -> None:
    thing = locate(name)
    assert thing is not None
    if not (isinstance(thing, type) or inspect.isfunction(thing)):
        assert name.removeprefix("tersor.") in documented_constants(), "a constant has a text below it"
        return
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name.rpartition('.')[2]}("), "dataclasses write this text themselves"
    text = text_of(thing)
    assert [word for word in wanted(thing) if not re.search(rf"\b{re.escape(word)}\b", text)] == []
    assert not isinstance(thing, type) or list(undocumented_methods(thing)) == []


def documented_constants() -> set[str]:
    """The names that a module-level text follows, in the modules that define the constants of the facade."""
    found = set()
    for constant in (value for name in ts.__all__ if isinstance(value := getattr(ts, name), ts.Scheme)):
        tree = ast.parse(Path(inspect.getfile(type(constant))).read_text(encoding="utf-8"))
        for before, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(before, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found |= {target.id for target in before.targets if isinstance(target, ast.Name)}
    return found
