"""Axes: what the dimensions of tensors are made of.

Every dimension of every tensor is an axis. An axis is a leaf, or it is a product of axes (a merged dimension, mixed
radix, the first part outermost) or a concatenation of axes (segments one after another). Two dimensions whose indices
belong together are made one axis by unification, which refines both to their common parts:

    linear, 768 outputs          A
    reshape to 12 x 64           A = H * D            pruning a head is removing an index of H
    rotary halves of D           D = D0 ++ D1, then D0 and D1 are the same axis: a pair goes together

A leaf's index is the smallest thing that can be removed. Whatever has no common refinement is pinned: it stays.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx


class Form(enum.Enum):
    """How an axis is made of its parts."""

    LEAF = "leaf"
    PRODUCT = "product"
    CONCAT = "concat"


@dataclass(frozen=True)
class Pin:
    """Why an axis has to stay: the node that asks for it, and the reason in words."""

    node: fx.Node
    why: str

    def __str__(self) -> str:
        target = self.node.op if self.node.op != "call_function" else str(self.node.target)
        return f"{target} (%{self.node.name}): {self.why}"


@dataclass(eq=False)
class Axis:
    """One dimension, or a part of one. Compared by identity, after `find`.

    size: how many indices it has. A dynamic dimension has a number of its own that no other size is a multiple of.
    """

    size: int
    name: str = ""
    form: Form = Form.LEAF
    parts: tuple[Axis, ...] = ()
    pins: list[Pin] = field(default_factory=list)
    frozen: bool = False
    parent: Axis | None = None

    def find(self) -> Axis:
        """The axis that this one was unified with."""
        root = self
        while root.parent is not None:
            root = root.parent
        while self.parent is not None:
            self.parent, self = root, self.parent  # the usual path compression
        return root

    def __repr__(self) -> str:
        axis = self.find()
        if axis.form is Form.LEAF:
            return f"{axis.name}[{axis.size}]"
        return f"({(' * ' if axis.form is Form.PRODUCT else ' ++ ').join(map(repr, axis.parts))})"


def product(parts: Iterable[Axis]) -> Axis:
    """The axis that runs over all combinations, the first part outermost. Parts of size 1 add nothing."""
    kept = tuple(part for part in parts if part.size != 1)
    if len(kept) == 1:
        return kept[0]
    return Axis(math.prod(part.size for part in kept), form=Form.PRODUCT if kept else Form.LEAF, parts=kept)


def concat(parts: Iterable[Axis]) -> Axis:
    """The axis that runs over its parts one after another."""
    kept = tuple(part for part in parts if part.size)
    if len(kept) == 1:
        return kept[0]
    return Axis(sum(part.size for part in kept), form=Form.CONCAT if kept else Form.LEAF, parts=kept)


def factors(axis: Axis) -> list[Axis]:
    """The parts of a product, flattened; the axis itself where it is none."""
    axis = axis.find()
    if axis.form is not Form.PRODUCT:
        return [axis] if axis.size != 1 else []
    return [inner for part in axis.parts for inner in factors(part)]


def pieces(axis: Axis) -> list[Axis]:
    """The parts of a concatenation, flattened; the axis itself where it is none."""
    axis = axis.find()
    if axis.form is not Form.CONCAT:
        return [axis]
    return [inner for part in axis.parts for inner in pieces(part)]


def leaves(axis: Axis) -> list[Axis]:
    """Every leaf that the axis is made of, once each, in order."""
    found: dict[Axis, None] = {}
    stack = [axis]
    while stack:
        current = stack.pop().find()
        if current.form is Form.LEAF:
            found.setdefault(current)
        else:
            stack.extend(reversed(current.parts))
    return list(found)


def frozen(axis: Axis) -> bool:
    """Whether no index of it can be removed. Once true it stays true."""
    axis = axis.find()
    if not axis.frozen:
        if axis.form is Form.LEAF:
            axis.frozen = bool(axis.pins) or axis.size <= 1
        else:
            axis.frozen = all(frozen(part) for part in axis.parts)
    return axis.frozen


_REASONS = 4
"""Reasons that are kept of why an axis stays; the first are the nearest."""


class Unifier:
    """Makes axes one, and pins what cannot be. `blame` is the node on whose behalf it works."""

    def __init__(self) -> None:
        self.blame: fx.Node | None = None

    def pin(self, axis: Axis, why: str, pins: Sequence[Pin] = ()) -> None:
        """Keep every index of the axis, for that reason, or for the pins that another axis has."""
        assert self.blame is not None
        for leaf in leaves(axis):
            known = {(pin.node, pin.why) for pin in leaf.pins}
            given = pins or (Pin(self.blame, why),)
            leaf.pins += [pin for pin in given if (pin.node, pin.why) not in known][: _REASONS - len(leaf.pins)]
            leaf.frozen = True

    def unify(self, left: Axis, right: Axis) -> None:
        """Let two axes of one size be the same, index by index."""
        left, right = left.find(), right.find()
        if left is right or left.size == right.size == 1:
            return
        if left.size != right.size:
            self._clash(left, right, f"sizes {left.size} and {right.size} do not fit")
        elif frozen(left) or frozen(right):
            pins = [pin for leaf in leaves(left) + leaves(right) for pin in leaf.pins]
            self.pin(left, "tied to a dimension that stays", pins)
            self.pin(right, "tied to a dimension that stays", pins)
            self._link(left, right)
        elif left.form is Form.LEAF:
            self._link(left, right)
        elif right.form is Form.LEAF:
            self._link(right, left)
        elif left.form is right.form is Form.PRODUCT:
            self._products(left, right)
        elif left.form is right.form is Form.CONCAT:
            self._concatenations(left, right)
        else:
            self._mixed(*((left, right) if left.form is Form.CONCAT else (right, left)))

    def cut(self, axis: Axis, at: int) -> tuple[Axis, Axis]:
        """Split an axis in its first `at` indices and the rest."""
        axis = axis.find()
        if not 0 < at < axis.size:
            return (axis, Axis(0)) if at >= axis.size else (Axis(0), axis)
        if frozen(axis):
            head, rest = Axis(at, axis.name), Axis(axis.size - at, axis.name)
            pins = [pin for leaf in leaves(axis) for pin in leaf.pins]
            for part in (head, rest):
                self.pin(part, "part of a dimension that stays", pins)
            return head, rest
        if axis.form is Form.LEAF:
            head, rest = Axis(at, axis.name), Axis(axis.size - at, axis.name)
        elif axis.form is Form.PRODUCT:
            head, rest = self._cut_product(axis, at)
        else:
            return self._cut_concatenation(axis, at)
        axis.form, axis.parts = Form.CONCAT, (head, rest)
        return head, rest

    def _link(self, loose: Axis, kept: Axis) -> None:
        loose, kept = loose.find(), kept.find()
        if loose is not kept:
            loose.parent = kept

    def _clash(self, left: Axis, right: Axis, why: str) -> None:
        self.pin(left, why)
        self.pin(right, why)

    def _cut_product(self, axis: Axis, at: int) -> tuple[Axis, Axis]:
        first, *others = factors(axis)
        inner = axis.size // first.size
        if at % inner == 0:
            head, rest = self.cut(first, at // inner)
            return product([head, *others]), product([rest, *others])
        before, remaining = self.cut(first, at // inner)
        _, after = self.cut(remaining, 1)
        head, rest = self.cut(product(others), at % inner)
        return (
            concat([product([before, *others]) if before.size else before, head]),
            concat([rest, product([after, *others]) if after.size else after]),
        )

    def _cut_concatenation(self, axis: Axis, at: int) -> tuple[Axis, Axis]:
        before: list[Axis] = []
        after: list[Axis] = []
        start = 0
        for piece in pieces(axis):
            head, rest = self.cut(piece, at - start) if start < at else (Axis(0), piece)
            before.append(head)
            after.append(rest)
            start += piece.size
        return concat(before), concat(after)

    def _products(self, left: Axis, right: Axis) -> None:
        ours, theirs = factors(left), factors(right)
        while ours and theirs:
            if ours[0].size < theirs[0].size:
                ours, theirs = theirs, ours
            large, small = ours.pop(0), theirs.pop(0)
            if large.size == small.size:
                self.unify(large, small)
                continue
            if large.size % small.size:
                self._clash(left, right, "merged dimensions are taken apart elsewhere than they were merged")
                return
            rest = Axis(large.size // small.size, large.name)
            self.unify(large, product([small, rest]))
            ours.insert(0, rest)
        self._link(left, right)

    def _concatenations(self, left: Axis, right: Axis) -> None:
        ours, theirs = pieces(left), pieces(right)
        while ours and theirs:
            if ours[0].size < theirs[0].size:
                ours, theirs = theirs, ours
            large, small = ours.pop(0), theirs.pop(0)
            if large.size > small.size:
                large, rest = self.cut(large, small.size)
                ours[:0] = pieces(rest)
            self.unify(large, small)
        self._link(left, right)

    def _mixed(self, segments: Axis, merged: Axis) -> None:
        """A concatenation against a product: the outermost factor is cut where a segment ends inside or between."""
        first, *others = factors(merged)
        inner = merged.size // first.size
        ends: set[int] = {first.size}
        end = 0
        for piece in pieces(segments)[:-1]:
            end += piece.size
            ends |= {end // inner, -(-end // inner)} - {0}
        start, left, blocks = 0, segments, first
        for stop in sorted(ends):
            segment, left = self.cut(left, (stop - start) * inner)
            block, blocks = self.cut(blocks, stop - start)
            self.unify(segment, product([block, *others]))
            start = stop
        self._link(segments, merged)


Keep = Mapping[Axis, Tensor]
"""A leaf to which of its indices stay, bool[size]; a leaf that is not listed stays whole."""


class Remaining:
    """How large axes are when of some leaves only that many indices are left."""

    def __init__(self, counts: Mapping[Axis, int]) -> None:
        self.counts = {axis.find(): count for axis, count in counts.items()}
        self._sizes: dict[Axis, int] = {}

    def size(self, axis: Axis) -> int:
        """How many indices stay."""
        axis = axis.find()
        if axis not in self._sizes:
            self._sizes[axis] = self._count(axis)
        return self._sizes[axis]

    def touches(self, axis: Axis) -> bool:
        """Whether any index of it goes."""
        return self.size(axis) != axis.size

    def _count(self, axis: Axis) -> int:
        if axis.form is Form.LEAF:
            return self.counts.get(axis, axis.size)
        sizes = [self.size(part) for part in axis.parts]
        return math.prod(sizes) if axis.form is Form.PRODUCT else sum(sizes)


class Cutting(Remaining):
    """What is left of axes when of their leaves only some indices stay."""

    def __init__(self, keep: Keep) -> None:
        super().__init__({axis: int(mask.sum()) for axis, mask in keep.items()})
        self.keep = {axis.find(): mask for axis, mask in keep.items()}
        self._masks: dict[Axis, Tensor] = {}

    def mask(self, axis: Axis) -> Tensor:
        """Which indices stay, bool[size]."""
        axis = axis.find()
        if axis not in self._masks:
            self._masks[axis] = self._compute(axis)
        return self._masks[axis]

    def _compute(self, axis: Axis) -> Tensor:
        if axis.form is Form.LEAF:
            return self.keep.get(axis, torch.ones(axis.size, dtype=torch.bool))
        if axis.form is Form.CONCAT:
            return torch.cat([self.mask(part) for part in axis.parts])
        mask = torch.ones(1, dtype=torch.bool)
        for part in axis.parts:
            mask = (mask[:, None] & self.mask(part)[None, :]).reshape(-1)
        return mask


def coordinates(axis: Axis, leaf: Axis) -> list[Tensor]:
    """For each place that a leaf has in an axis: the leaf's index at every position, int64[size], -1 where it has none.

    An axis that holds a leaf several times side by side (a rotary pair) has one entry with all of them.
    """
    axis, leaf = axis.find(), leaf.find()
    if axis is leaf:
        return [torch.arange(axis.size)]
    if leaf not in leaves(axis):
        return []
    if axis.form is Form.CONCAT:
        parts = [coordinates(part, leaf) or [torch.full((part.size,), -1)] for part in axis.parts]
        depth = max(map(len, parts))
        return [torch.cat([part[min(level, len(part) - 1)] for part in parts]) for level in range(depth)]
    found: list[Tensor] = []
    before = 1
    for part in axis.parts:
        after = axis.size // (before * part.size)
        found += [inner[None, :, None].expand(before, -1, after).reshape(-1) for inner in coordinates(part, leaf)]
        before *= part.size
    return found
