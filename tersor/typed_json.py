"""Frozen dataclasses as JSON, checked against their types when read: a file of another shape gives one clear error.

JSON lacks NaN and infinity; they stand as the texts `nan`, `inf` and `-inf` where a float is declared.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tersor.ir.errors import ArchiveError
from tersor.passes.checkpoint import write_json

T = TypeVar("T")
_NONFINITE = ("nan", "inf", "-inf")


def encode(value: Any) -> Any:
    """Plain data for `json.dumps`: dataclasses and mappings as objects, enums by value."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    return [encode(item) for item in value] if isinstance(value, list | tuple) else value


def read(path: Path) -> Any:
    """What a JSON file holds. Raises ArchiveError where it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is not JSON", found=" ".join(str(error).split())) from error


def write(path: Path, data: Any) -> None:
    """Write plain data as a file, whole or not at all. Raises OSError that names the file."""
    try:
        write_json(path, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def decode(data: Any, kind: type[T], where: str) -> T:
    """The dataclass `kind` from plain data. Raises ArchiveError that names the place of what does not fit."""
    found: T = _decode(data, kind, where)
    return found


def _decode(data: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # Every union in these files is `X | None`.
        return None if data is None else _decode(data, arguments[0], where)
    if origin is tuple:
        _expect(isinstance(data, list), where, "a list", data)
        return tuple(_decode(item, arguments[0], f"{where}[{place}]") for place, item in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(data, dict), where, "an object", data)
        return {key: _decode(item, arguments[1], f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(hint):
        return _dataclass(data, hint, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        values = [member.value for member in hint]
        _expect(data in values, where, " or ".join(map(repr, values)), data)
        return hint(data)
    return _plain(data, hint, where)


def _plain(data: Any, hint: Any, where: str) -> Any:
    if hint is float:
        number = isinstance(data, int | float) and not isinstance(data, bool)
        _expect(number or data in _NONFINITE, where, "a number", data)
        return float(data)
    _expect(type(data) is hint, where, {str: "text", int: "a whole number"}.get(hint, "true or false"), data)
    return data


def _dataclass(data: Any, kind: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object", data)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in data:
        _expect(key in fields, where, f"only {', '.join(fields)}", key)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _decode(data[name], _hints(kind)[name], f"{where}.{name}")
        else:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            _expect(not required, where, f"an entry {name!r}", "none")
    try:
        return kind(**values)
    except ValueError as error:
        raise ArchiveError(f"{where}: {error}") from error


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _expect(holds: bool, where: str, expected: str, found: Any) -> None:
    if not holds:
        raise ArchiveError(f"{where} is malformed", expected=expected, found=_short(found))


def _short(found: Any) -> str:
    text = repr(found)
    return text if len(text) < 80 else f"{text[:77]}..."


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
