"""Arrays of a layer in C++, constants and memories, with the pragmas that divide them and say what holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .storage import Storage, storage_of

_WIDTH = 116


def braces(values: Any) -> str:
    """Nested lists of numbers as a C++ initializer."""
    if isinstance(values, list | tuple):
        return "{" + ", ".join(map(braces, values)) + "}"
    return str(int(values))


def wrapped(text: str, indent: str = "    ") -> list[str]:
    """Lines of at most `_WIDTH` characters, broken after commas."""
    lines, line = [], ""
    for part in text.split(", "):
        piece = part + ", "
        if line and len(line) + len(piece) > _WIDTH:
            lines.append(indent + line.rstrip())
            line = ""
        line += piece
    return [*lines, indent + line.removesuffix(", ")]


@dataclass(frozen=True)
class Array:
    """An array that a kernel is given.

    values: nested lists; None of a memory that the layer writes. banks: the dimensions, from 1, each of whose elements
    has a memory of its own; word: those whose elements lie in one word. readers: how many places are read in a cycle.
    packed: whether an element is a struct whose fields make one word. apart: whether a word is only written again many
    cycles after it was written or read, which the tool cannot know.
    """

    kind: str
    name: str
    sizes: tuple[int, ...]
    values: Any = None
    banks: tuple[int, ...] = ()
    word: tuple[int, ...] = ()
    readers: int = 1
    packed: bool = False
    apart: bool = False
    outside: bool = False

    @property
    def words(self) -> int:
        """How deep a memory of it is."""
        divided = (*self.banks, *self.word)
        return math.prod(size for place, size in enumerate(self.sizes, start=1) if place not in divided)

    def constant(self) -> list[str]:
        """Its definition where it is a constant; nothing otherwise."""
        if self.values is None:
            return []
        return [f"static const {self.kind} {self.name}{self._sizes} =", *wrapped(f"{braces(self.values)};")]

    def inside(self) -> list[str]:
        """What the layer's function says of it: its declaration, where it is a memory, and pragmas."""
        declared = [f"    {self.kind} {self.name}{self._sizes};"] if self.values is None else []
        if self.outside or not self.sizes:
            return declared
        storage = storage_of(self.words)
        if storage is Storage.REGISTERS:
            return [*declared, self._pragma("ARRAY_PARTITION", "complete dim = 0")]
        divided = [("ARRAY_PARTITION", dim) for dim in self.banks] + [("ARRAY_RESHAPE", dim) for dim in self.word]
        pragmas = [self._pragma(what, f"complete dim = {dim}") for what, dim in divided]
        if self.packed:
            pragmas.insert(0, self._pragma("AGGREGATE", "compact = bit"))
        port = "ram_s2p" if self.values is None else "rom_1p" if self.readers == 1 else "rom_np"
        pragmas.append(self._pragma("BIND_STORAGE", f"type = {port} impl = {storage.value}"))
        if self.apart:
            pragmas.append(self._pragma("DEPENDENCE", "type = inter dependent = false"))
        return [*declared, *pragmas]

    def _pragma(self, what: str, how: str) -> str:
        return f"#pragma HLS {what} variable = {self.name} {how}"

    @property
    def _sizes(self) -> str:
        return "".join(f"[{size}]" for size in self.sizes)
