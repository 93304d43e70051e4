"""How many messages a serialized model holds, told before it is parsed: two bytes in a file are a hundred in memory."""

from __future__ import annotations

from functools import cache
from typing import Any

from onnx import ModelProto

_LENGTH_GIVEN = 2
_SIZES = {1: 8, 5: 4}
"""Kind of a field's value on the wire -> its bytes, where they are always as many."""


def holds_at_most(data: bytes, most: int) -> bool:
    """Whether a serialized ModelProto holds at most so many messages within it.

    Data that is damaged is counted as far as it can be read; parsing it raises.
    """
    stack: list[tuple[int, int, Any]] = [(0, len(data), ModelProto.DESCRIPTOR)]
    found = 0
    while stack:
        place, end, kind = stack.pop()
        kinds = _within(kind)
        while place < end:
            tag, place = _number(data, place)
            wire = tag & 7
            if wire == 0:
                _, place = _number(data, place)
            elif wire == _LENGTH_GIVEN:
                length, place = _number(data, place)
                inner = kinds.get(tag >> 3)
                if inner is not None:
                    stack.append((place, min(place + length, end), inner))
                    found += 1
                    if found > most:
                        return False
                place += length
            else:
                place += _SIZES.get(wire, 0)
    return True


@cache
def _within(kind: Any) -> dict[int, Any]:
    """The messages that a message may hold, by the numbers of their fields."""
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the low ones first, ten bytes at most, and the place after it."""
    number = 0
    for index, byte in enumerate(data[place : place + 10]):
        number |= (byte & 127) << 7 * index
        if byte < 128:
            return number, place + index + 1
    return number, place + 10
