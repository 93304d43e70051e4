"""From passes to a recipe: YAML that `load_recipe` reads back to the same passes."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from tersor.ir.errors import RecipeError
from tersor.ir.program import Program
from tersor.ir.quantization import SCHEMES, Scheme
from tersor.ir.sparsity import PATTERNS
from tersor.passes.base import Pass, snake_case
from tersor.passes.registry import PASSES

from .recipe_data import BOUND, GIVEN

_LEFT_OUT = ("checkpoint",)
"""Options that say where to keep things and nothing of what is done."""


def recipe_text(passes: Sequence[Pass], *, comments: Sequence[str] = (), **entries: Any) -> str:
    """A recipe of these passes as YAML. Data, losses and metrics are left out, and given when it is loaded.

    comments: lines above it. entries: others of the recipe, as `description`, `target`, `loss`.

    Raises RecipeError for an option that text cannot hold.
    """
    head = "".join(f"# {line}\n" if line else "#\n" for line in comments)
    known = {name: value for name, value in entries.items() if value is not None}
    document = {**known, "passes": [_entry(step) for step in passes]}
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=116)


def save_recipe(passes: Sequence[Pass], path: str | Path, *, comments: Sequence[str] = (), **entries: Any) -> Path:
    """Write a recipe of passes as YAML to `path`, whole or not at all.

    Data, losses and metrics are left out, and given when it is loaded. comments: lines above it. entries: others of the
    recipe, as `description`, `target`, `loss`.

    Raises RecipeError for an option that text cannot hold.
    """
    target = Path(path)
    text = recipe_text(passes, comments=comments, **entries)
    scratch = target.with_name(f".{target.name}.writing")
    try:
        scratch.write_text(text, encoding="utf-8")
        return scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _entry(step: Pass) -> Any:
    name = _registered(step)
    options = _options(step, name)
    return {name: options} if options else name


def _registered(step: Pass) -> str:
    """The name by which recipes know a pass. Raises RecipeError where none does."""
    kind = type(step)
    for name in PASSES.names():
        if PASSES.builtin.get(name) == f"{kind.__module__}:{kind.__qualname__}":
            return name
    name = step.name
    if name in PASSES.names() and PASSES.find(name) is kind:
        return name
    raise RecipeError(
        f"{kind.__name__} has no name that a recipe knows",
        expected=f"one of {', '.join(PASSES.names())}",
        hint="register it under the entry point tersor.passes",
    )


def _options(value: Any, where: str) -> dict[str, Any]:
    """The fields that differ from their defaults, and are not given when the recipe is loaded."""
    found = {}
    for field in dataclasses.fields(value):
        now = getattr(value, field.name)
        if field.name in BOUND or field.name in _LEFT_OUT or not field.init or _is_default(field, now):
            continue
        found[field.name] = _plain(now, f"{where}.{field.name}")
    return found


def _is_default(field: Any, value: Any) -> bool:
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return type(default) is type(value) and bool(default == value)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Program | nn.Module):
        if where.endswith(".teacher"):
            return GIVEN
    elif isinstance(value, Path):
        return str(value)
    elif isinstance(value, tuple | list):
        return [_plain(item, where) for item in value]
    elif isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    elif isinstance(value, Pass):
        return _entry(value)
    elif isinstance(value, Scheme) and value in SCHEMES.values():
        return next(name for name, scheme in SCHEMES.items() if scheme == value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, where)
    raise RecipeError(f"{where} cannot be written in a recipe", found=type(value).__name__, hint="keep the Python")


def _dataclass(value: Any, where: str) -> Any:
    """By name where a field takes any of several: patterns, criteria, targets."""
    kind = type(value)
    if kind in PATTERNS.values():
        return {value.name: _options(value, where)}
    options = _options(value, where)
    abstract = any(inspect.isabstract(base) and dataclasses.is_dataclass(base) for base in kind.__mro__[1:])
    if not abstract:
        return options
    return {snake_case(kind.__name__): options} if options else snake_case(kind.__name__)
