"""Digests of what a try consists of, the same in every process: a try that is done is known again by its digest."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def fingerprint(*values: Any) -> str:
    """Sixteen hexadecimal digits that stand for the values.

    Tensors count by their bytes, dataclasses by their fields, functions by their names. What cannot be compared, as a
    data loader, counts by its type alone.
    """
    digest = hashlib.sha256()
    for value in values:
        _add(digest, value)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if value is None or isinstance(value, bool | int | float | str | bytes | enum.Enum | Path):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, Tensor):
        digest.update(f"tensor:{value.dtype}{tuple(value.shape)};".encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, functools.partial):
        _named(digest, "partial", [value.func, *value.args, value.keywords])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [item for field in dataclasses.fields(value) for item in (field.name, getattr(value, field.name))]
        _named(digest, _kind(value), fields)
    elif isinstance(value, Mapping):
        _named(digest, "mapping", [item for pair in value.items() for item in pair])
    elif isinstance(value, set | frozenset):
        _named(digest, "set", sorted(fingerprint(item) for item in value))
    elif isinstance(value, list | tuple):
        _named(digest, "list", value)
    else:
        digest.update(
            f"{_kind(value)}:{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')};".encode()
        )


def _named(digest: Any, name: str, items: Any) -> None:
    digest.update(f"{name}(".encode())
    for item in items:
        _add(digest, item)
    digest.update(b")")


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
