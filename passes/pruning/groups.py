"""Groups: the indices that a criterion scores, with the parameters that each of them takes along."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tersor.ir.program import Program

from .analysis import Dimensions
from .axes import Axis, coordinates, leaves
from .flow import Kind


@dataclass(frozen=True)
class Member:
    """A dimension of a parameter along which a group's indices lie."""

    name: str
    dim: int
    axis: Axis
    leaf: Axis
    program: Program

    @property
    def tensor(self) -> Tensor:
        """The parameter's values."""
        return self.program.tensor(self.name).detach()

    @cached_property
    def places(self) -> Tensor:
        """The positions of each index along the dimension, int64[indices, positions of one]."""
        order = [found.argsort(stable=True)[int((found < 0).sum()) :] for found in coordinates(self.axis, self.leaf)]
        return torch.cat([positions.reshape(self.leaf.size, -1) for positions in order], dim=1)

    def rows(self, values: Tensor | None = None) -> Tensor:
        """What goes with each index, [indices, values]: of the parameter, or of another tensor of its shape."""
        moved = (self.tensor if values is None else values).movedim(self.dim, 0)
        if self.axis.find() is self.leaf.find():
            return moved.reshape(self.leaf.size, -1)
        return moved[self.places.to(moved.device)].reshape(self.leaf.size, -1)


@dataclass(frozen=True)
class Group:
    """An axis whose indices can go one by one, each with its slice of every member.

    leaf: the axis. kind: what it stands for. members: the dimensions of parameters that have it; `name` is the first
        such parameter. found: the analysis that it comes from.
    """

    leaf: Axis
    kind: Kind
    members: tuple[Member, ...]
    found: Dimensions

    @property
    def name(self) -> str:
        return self.members[0].name

    @property
    def size(self) -> int:
        """How many indices it has."""
        return self.leaf.size

    def __str__(self) -> str:
        return f"{self.name} ({self.kind.value}, {self.size}, {len(self.members)} tensors)"


def groups(program: Program, found: Dimensions) -> tuple[Group, ...]:
    """Every group of a program, in the order of the tensors; each tied parameter counts once."""
    members: dict[Axis, list[Member]] = {leaf: [] for leaf in found.prunable}
    for name in program.parameters():
        for dim, axis in enumerate(found.tensors.get(name, ())):
            for leaf in leaves(axis):
                if leaf in members:
                    members[leaf].append(Member(name, dim, axis, leaf, program))
    return tuple(Group(leaf, found.kind(leaf), tuple(parts), found) for leaf, parts in members.items() if parts)
