"""The nesting of a model's inputs and outputs: what is a tensor, what is a constant, what holds them.

torch's own tree specs name Python classes, and a file that names classes runs their code when it is read. This one is
plain data. A class that the model returned (transformers' ModelOutput, a dataclass, a namedtuple) is remembered while
the process lives; a program that was loaded from a file returns a `Record` in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .errors import SignatureError

Kind = Literal["leaf", "constant", "list", "tuple", "dict", "record"]
Constant = bool | int | float | str | None


class Record(dict[str, Any]):
    """A dictionary whose items are attributes too, and positions: what a named output is after loading."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"no field {name!r}; there are {', '.join(self)}") from None

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass(frozen=True)
class Structure:
    """A tree whose leaves are tensors, numbered in order.

    keys: name the children of dicts and records; of a leaf that stands alone, its own name.
    """

    kind: Kind
    children: tuple[Structure, ...] = ()
    keys: tuple[str, ...] = ()
    constant: Constant = None
    factory: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    @property
    def leaves(self) -> int:
        """How many tensors it holds."""
        return 1 if self.kind == "leaf" else sum(child.leaves for child in self.children)

    def paths(self, prefix: str = "") -> Iterator[str]:
        """A dotted name for each leaf, such as `hidden_states.0`."""
        if self.kind == "leaf":
            yield prefix or "".join(self.keys)
            return
        names = self.keys or tuple(map(str, range(len(self.children))))
        for name, child in zip(names, self.children, strict=True):
            yield from child.paths(f"{prefix}.{name}" if prefix else name)

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """Build the nested value, taking one leaf after another."""
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "constant":
            return self.constant
        values = [child.unflatten(leaves) for child in self.children]
        if self.kind == "list":
            return values
        if self.kind == "tuple":
            return self.factory(*values) if self.factory else tuple(values)
        named = dict(zip(self.keys, values, strict=True))
        if self.kind == "dict":
            return named
        return self.factory(**named) if self.factory else Record(named)

    def to_json(self) -> dict[str, Any]:
        """Plain data for an archive."""
        data: dict[str, Any] = {"kind": self.kind}
        if self.kind == "constant":
            data["constant"] = repr(self.constant) if isinstance(self.constant, float) else self.constant
            data["float"] = isinstance(self.constant, float)
        if self.keys:
            data["keys"] = list(self.keys)
        if self.children:
            data["children"] = [child.to_json() for child in self.children]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Structure:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on data of another shape."""
        kind = data["kind"]
        if kind not in ("leaf", "constant", "list", "tuple", "dict", "record"):
            raise ValueError(f"unknown structure {kind!r}")
        keys = tuple(str(key) for key in data.get("keys", ()))
        children = tuple(cls.from_json(child) for child in data.get("children", ()))
        if kind in ("dict", "record") and len(keys) != len(children):
            raise ValueError("a structure has as many keys as children")
        constant = data.get("constant")
        if not isinstance(constant, bool | int | str | None):
            raise ValueError(f"a constant cannot be {type(constant).__name__}")
        return cls(kind, children, keys, float(str(constant)) if data.get("float") else constant)


def flatten(value: Any, where: str = "") -> tuple[list[torch.Tensor], Structure]:
    """Split a nested value into its tensors, in order, and its structure.

    Raises SignatureError on a value that is neither a tensor, a constant nor a container of them.
    """
    leaves: list[torch.Tensor] = []
    return leaves, _flatten(value, leaves, where)


def _flatten(value: Any, leaves: list[torch.Tensor], where: str) -> Structure:
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return Structure("leaf")
    if value is None or isinstance(value, bool | int | float | str):
        return Structure("constant", constant=value)
    keys, values, kind, factory = _container(value, where)
    children = tuple(
        _flatten(child, leaves, f"{where}.{key}" if where else str(key))
        for key, child in zip(keys or range(len(values)), values, strict=True)
    )
    return Structure(kind, children, keys, factory=factory)


def _container(value: Any, where: str) -> tuple[tuple[str, ...], list[Any], Kind, Callable[..., Any] | None]:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return (), list(value), "tuple", type(value)
    if isinstance(value, list | tuple):
        return (), list(value), "list" if isinstance(value, list) else "tuple", None
    if isinstance(value, Mapping):
        plain = type(value) in (dict, Record)
        kind: Kind = "dict" if type(value) is dict else "record"
        return tuple(map(str, value)), list(value.values()), kind, None if plain else type(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
        return names, [getattr(value, name) for name in names], "record", type(value)
    raise SignatureError(
        f"{where or 'value'} is a {type(value).__name__}, which is not a tensor, a constant or a container of them",
        expected="tensors, None, bool, int, float, str, and lists, tuples, dicts or dataclasses of them",
        found=type(value).__name__,
    )
