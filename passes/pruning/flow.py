"""What a rule works with while the analysis walks the graph: the axes of every value, and what the cut will rewrite."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .axes import Axis, Pin, Unifier, product

Axes = tuple[Axis, ...]
"""The axes of a tensor's dimensions, in order."""


class Kind(enum.Enum):
    """What an axis stands for in the model.

    WIDTH: channels of a layer, such as those inside an MLP. RESIDUAL: channels of a stream that additions tie together.
    HEADS: attention heads. HEAD_DIM: the width of a head. EXPERTS: experts of a mixture, with their router's outputs.
    """

    WIDTH = "width"
    RESIDUAL = "residual"
    HEADS = "heads"
    HEAD_DIM = "head_dim"
    EXPERTS = "experts"


class CannotFollowError(Exception):
    """Raised inside a rule: the operator cannot be followed here, for that reason. Its dimensions are then pinned."""


@dataclass(frozen=True)
class SizeOf:
    """An argument of a call that is the number of indices of an axis: a shape, the end of a slice, a count of groups.

    index: the place in an argument that is a list; None where the argument is a number.
    """

    node: fx.Node
    argument: str
    axis: Axis
    index: int | None = None


Action = Callable[[Program, fx.Node, Callable[[Axis], int]], None]


@dataclass(frozen=True)
class Change:
    """A rewrite of a call that is due where one of the axes shrinks: `action(program, node, size of an axis)`."""

    node: fx.Node
    axes: Axes
    action: Action


@dataclass
class Flow:
    """The state of the analysis.

    values: the axes of each node; a tuple of them where an operator has several results; None for what is no tensor.
    tensors: the axes of each parameter and buffer by its identity.
    indices: for a node whose values are indices, the axis that they point into.
    """

    program: Program
    sizes: Callable[[Tensor], tuple[int, ...]]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    tensors: dict[int, Axes] = field(default_factory=dict)
    indices: dict[fx.Node, Axis] = field(default_factory=dict)
    edits: list[SizeOf | Change] = field(default_factory=list)
    minima: list[tuple[Axis, int, fx.Node]] = field(default_factory=list)
    kinds: list[tuple[Axis, Kind]] = field(default_factory=list)
    axes: Unifier = field(default_factory=Unifier)

    # -- reading ---------------------------------------------------------------------------------------------------

    def of(self, value: object) -> Axes:
        """The axes of an operand that is one tensor."""
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        if found is None or (found and not isinstance(found[0], Axis)):
            raise CannotFollowError("an operand is no tensor")
        axes: Axes = found
        return axes

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The sizes of a node's one tensor as numbers."""
        return self.sizes(node.meta[KEY])

    # -- saying ----------------------------------------------------------------------------------------------------

    def fresh(self, size: int, dim: int | str = "") -> Axis:
        """A new leaf, named after the node at hand."""
        node = self.axes.blame
        assert node is not None
        return Axis(size, f"{node.name}.{dim}" if dim != "" else node.name)

    def pinned(self, size: int, why: str, dim: int | str = "") -> Axis:
        """A new leaf that stays."""
        axis = self.fresh(size, dim)
        self.axes.pin(axis, why)
        return axis

    def pin(self, axes: Iterable[Axis], why: str) -> None:
        """Keep all indices of these axes."""
        for axis in axes:
            self.axes.pin(axis, why)

    def same(self, left: Axis, right: Axis) -> Axis:
        """Let two axes be one."""
        self.axes.unify(left, right)
        return right

    def broadcast(self, operands: Sequence[Axes]) -> Axes:
        """Align operands from the last dimension; dimensions of size 1 stretch."""
        rank = max(map(len, operands), default=0)
        result: list[Axis] = []
        for place in range(-rank, 0):
            column = [axes[place] for axes in operands if len(axes) >= -place]
            wide = [axis for axis in column if axis.size != 1]
            for other in wide[1:]:
                self.axes.unify(wide[0], other)
            result.append(wide[0] if wide else column[0])
        return tuple(result)

    def regroup(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """The axes of a reshape: dimensions that are merged or split, in order, each run of them on its own."""
        if 0 in shape or any(axis.size == 0 for axis in axes):
            raise CannotFollowError("a tensor without values")
        result: list[Axis] = []
        given = [axis for axis in axes if axis.size != 1]
        wanted = list(shape)
        if math.prod(axis.size for axis in given) != math.prod(wanted):
            raise CannotFollowError("the sizes before and after do not multiply to the same")
        while wanted:
            if wanted[0] == 1:
                result.append(self.fresh(wanted.pop(0), len(result)))
                continue
            run, new = [given.pop(0)], [wanted.pop(0)]
            while (left := math.prod(axis.size for axis in run)) != (right := math.prod(new)):
                (run.append(given.pop(0)) if left < right else new.append(wanted.pop(0)))
            if len(run) == len(new) == 1:
                result += run
                continue
            made = [self.fresh(size, len(result) + place) for place, size in enumerate(new)]
            self.axes.unify(product(run), product(made))
            result += made
        return tuple(result)

    # -- what the cut rewrites -------------------------------------------------------------------------------------

    def sized(self, node: fx.Node, argument: str, axes: Axis | Sequence[Axis]) -> None:
        """Say that an argument holds the sizes of these axes: one number, or a list of them."""
        if isinstance(axes, Axis):
            self.edits.append(SizeOf(node, argument, axes))
        else:
            self.edits += [SizeOf(node, argument, axis, place) for place, axis in enumerate(axes)]

    def change(self, node: fx.Node, axes: Iterable[Axis], action: Action) -> None:
        """Say what has to be done to the call where one of these axes shrinks."""
        self.edits.append(Change(node, tuple(axes), action))

    def at_least(self, axis: Axis, count: int, node: fx.Node) -> None:
        """Say that an axis has to keep that many indices."""
        self.minima.append((axis, count, node))

    def mark(self, axis: Axis, kind: Kind) -> None:
        """Say what the axis stands for."""
        self.kinds.append((axis, kind))


Rule = Callable[[Flow, fx.Node], Any]
"""From the axes of a call's operands to those of its result; ties, pins and edits go into the flow."""


__all__ = ["Action", "Axes", "CannotFollowError", "Change", "Flow", "Kind", "Pin", "Rule", "SizeOf"]
