"""The heads of attention, apart and joined.

Models compute queries, keys and values for all heads in one linear, part the heads, attend, and join them again:

    [batch, length, heads * width] -> reshape -> [batch, length, heads, width]      apart
                                   -> permute -> [batch, heads, length, width]      apart, heads first

An operator that takes joined heads needs none of these moves. So each value whose heads were parted remembers what it
was parted from, whatever made it, and a move that would join them again gives that value back. What nobody reads any
more is left out of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .builder import Builder, Value

HEADS_FIRST = (0, 2, 1, 3)
"""The permutation from heads apart to heads first, and back."""


@dataclass(frozen=True)
class Heads:
    """joined: the value with its heads in one axis, [batch, length, heads * width], and its sizes.

    first: whether the heads stand before the positions.
    """

    joined: str
    sizes: tuple[Any, ...]
    first: bool


def note_parted(b: Builder, x: Value, parted: str) -> str:
    """Remember where a reshape from `x` to `parted` parts heads; returns `parted`."""
    sizes = b.result.shape
    fixed = len(sizes) == 4 and all(isinstance(size, int) for size in sizes[2:])
    if x.rank == 3 and fixed and all(b.same_size(x.shape[axis], sizes[axis]) for axis in (0, 1)):
        b.heads[parted] = Heads(str(x), x.shape, first=False)
    return parted


def note_turned(b: Builder, x: Value, turned: str, perm: Sequence[int]) -> str:
    """Remember where a permutation of `x` moves heads to the front or back; returns `turned`."""
    found = b.heads.get(x)
    if found is not None and tuple(perm) == HEADS_FIRST:
        b.heads[turned] = Heads(found.joined, found.sizes, not found.first)
    return turned


def joined_again(b: Builder, x: Value, sizes: Sequence[Any]) -> str | None:
    """The value with joined heads that a reshape of `x` to `sizes` would give; None where it gives another."""
    found = b.heads.get(x)
    if found is None or found.first or len(sizes) != 3:
        return None
    same = all(b.same_size(left, right) for left, right in zip(found.sizes, sizes, strict=True))
    return found.joined if same else None


def heads_first(b: Builder, joined: str, like: Value) -> str:
    """Part the heads of a value and put them before the positions, as `like` has them."""
    batch, heads, length, width = like.shape
    parted = b.move("Reshape", joined, b.ints(0, 0, heads, width))
    result = b.move("Transpose", parted, perm=HEADS_FIRST)
    b.heads[result] = Heads(joined, (batch, length, heads * width), first=True)
    return result
