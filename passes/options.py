"""Options of a pass that are of another type than the pass declares, found before anything runs."""

from __future__ import annotations

import dataclasses
import enum
import numbers
import types
import typing
from typing import Any

from tersor.ir.errors import PassError
from tersor.ir.quantization import SCHEMES, Scheme

from .base import Pass

_NUMBERS: dict[type, type] = {int: numbers.Integral, float: numbers.Real}
"""What stands for a number: NumPy's as well."""


def check_options(step: Pass) -> None:
    """Raise PassError at the first option that is of no type that its field declares, those within `Training` too.

    Fields of protocols, functions and collections are left to the pass: what those hold shows when they are used.
    """
    _check(step, f"pass {step.name}: ")


def _check(options: Any, path: str) -> None:
    try:
        hints = typing.get_type_hints(type(options))
    except (NameError, AttributeError, TypeError):  # names that only a type checker sees
        return
    for field in dataclasses.fields(options):
        value, kinds = getattr(options, field.name), _kinds(hints[field.name])
        if kinds and not isinstance(value, kinds):
            found = f"{value!r}, of type {type(value).__name__}"
            what = f"{path}{field.name} is of the wrong type"
            raise PassError(what, expected=_said(kinds), found=found, hint=_meant(value, kinds))
        if kinds and dataclasses.is_dataclass(value):
            _check(value, f"{path}{field.name}.")


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a hint allows; none where it allows what cannot be told by its class."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        each = [_kinds(member) for member in typing.get_args(hint)]
        return tuple(kind for kinds in each for kind in kinds) if all(each) else ()
    if hint is None:
        return (type(None),)
    if not isinstance(hint, type) or typing.get_origin(hint) is not None or getattr(hint, "_is_protocol", False):
        return ()
    return (_NUMBERS.get(hint, hint),)


def _said(kinds: tuple[type, ...]) -> str:
    names = {numbers.Integral: "int", numbers.Real: "float", type(None): "None"}
    return " or ".join(names.get(kind, kind.__name__) for kind in kinds)


def _meant(value: object, kinds: tuple[type, ...]) -> str | None:
    """What the name of a scheme or of a choice stands for in Python."""
    if not isinstance(value, str):
        return None
    for kind in kinds:
        if issubclass(kind, enum.Enum):
            return " or ".join(f"{kind.__name__}.{member.name}" for member in kind)
        if kind is Scheme:
            return f"ts.{value.upper()}" if value in SCHEMES else " or ".join(f"ts.{name.upper()}" for name in SCHEMES)
    return None
