"""What an expert is worth: how often routers choose it on data."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.program import Program

from ..compare import node_values
from ..processes import rank, summed, world
from ..progress import track
from ..training.batches import split
from .axes import Axis, coordinates, leaves
from .criteria import Criterion
from .gathering import require_data
from .groups import Group


@dataclass(frozen=True)
class RouterFrequency(Criterion):
    """The share of choices that fall on an expert (Lu et al. 2024, arXiv:2402.14800, in its simplest form).

    A router's choices are the indices of its top-k, whatever it does to its scores before. Where experts stand in
    groups, an index of the group's axis counts the choices of all its experts. Axes that no router chooses from stay.

    batches: what the model is called with; every token counts as one.
    """

    comparable: ClassVar[bool] = True

    batches: Iterable[Any] | None = None

    def gather(self, program: Program, groups: Sequence[Group]) -> dict[Axis, Tensor]:
        """The share of choices by leaf. Raises PassError without a router, CalibrationError without data."""
        batches = require_data(self, self.batches)
        found = groups[0].found.indices if groups else {}
        wanted = {group.leaf.find() for group in groups}
        routers = {node: axis for node, axis in found.items() if _is_read(node) and not wanted.isdisjoint(leaves(axis))}
        if not routers:
            raise PassError("routers are asked for, and there is none", hint="Magnitude(), or kinds=(Kind.EXPERTS,)")
        counts = _counts(program, routers, batches)
        return {leaf: share for leaf in wanted if (share := _share(leaf, routers, counts)) is not None}

    def score(self, group: Group, gathered: Any) -> Tensor | None:
        """Its shares; None for an axis that no router chooses from."""
        found: Tensor | None = gathered.get(group.leaf.find())
        return found


def _is_read(node: fx.Node) -> bool:
    """Whether a node is a top-k whose indices are used."""
    return node.target is torch.ops.aten.topk.default and any(
        user.target is operator.getitem and user.args[1] == 1 and user.users for user in node.users
    )


def _counts(program: Program, routers: Mapping[fx.Node, Axis], batches: Iterable[Any]) -> dict[fx.Node, Tensor]:
    """How often each router chose each index, over all batches."""
    counts = {node: torch.zeros(axis.size, dtype=torch.float64) for node, axis in routers.items()}

    def visit(node: fx.Node, value: Any) -> None:
        if node in counts:
            counts[node] += torch.bincount(value[1].flatten(), minlength=len(counts[node])).cpu()

    seen = 0
    for batch in track(batches, "routers"):
        if seen % world() == rank():
            node_values(program, split(program, batch).inputs(program), visit)
        seen += 1
    if not seen:
        raise CalibrationError("the data is empty", expected="at least one batch", found="none")
    return {node: summed(count) for node, count in counts.items()}


def _share(leaf: Axis, routers: Mapping[fx.Node, Axis], counts: Mapping[fx.Node, Tensor]) -> Tensor | None:
    parts = []
    for node, axis in routers.items():
        for places in coordinates(axis, leaf):
            inside = places >= 0
            total = torch.zeros(leaf.size, dtype=torch.float64)
            total.index_add_(0, places[inside], counts[node][inside])
            parts.append(total / counts[node].sum().clamp(min=1))
    return torch.stack(parts).mean(0) if parts else None
