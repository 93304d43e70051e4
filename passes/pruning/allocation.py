"""Which indices go: an order of removal from scores, and the point in it that meets the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.ir.errors import PassError

from .axes import Axis, Remaining, leaves
from .flow import Kind
from .groups import Group

_WHOLE_KINDS = (Kind.HEADS, Kind.EXPERTS)
_REFINEMENTS = 60
_CLOSE = 1e-3
"""How many steps behind the point are tried to fill the gap, and how small a gap is left alone."""


@dataclass(frozen=True)
class Limits:
    """What an axis may shrink to.

    least, most: the share of indices that stays at least and at most. multiple: counts that the target likes; heads
    and experts are counted singly.
    """

    least: float
    most: float
    multiple: int


@dataclass(frozen=True)
class Step:
    """The smallest legal removal from one axis: the indices go together, in `order` of their scores."""

    worth: float
    group: int
    count: int


@dataclass(frozen=True)
class Plan:
    """What stays of each leaf, and the cost that comes of it."""

    keep: Mapping[Axis, Tensor]
    cost: float


def required(minima: Sequence[tuple[Axis, int]], groups: Sequence[Group]) -> dict[Axis, int]:
    """How many indices of each leaf operators need, such as the k of a topk."""
    least = {group.leaf.find(): 1 for group in groups}
    for axis, count in minima:
        parts = [leaf for leaf in leaves(axis) if leaf in least]
        for leaf in sorted(parts, key=lambda part: -part.size):
            while least[leaf] < leaf.size and Remaining(least).size(axis) < count:
                least[leaf] += 1
    return least


class Removal:
    """All legal removals of a program in one order, the least worth first.

    scores: for each group a score an index. originals: the sizes that shares are counted from. worth: what the order
        over all axes goes by.

    Within an axis, indices go from the lowest score up, as many at a time as keep the count legal.
    """

    def __init__(
        self, groups: Sequence[Group], scores: Sequence[Tensor], required: Mapping[Axis, int],
        originals: Mapping[Axis, int], limits: Limits, worth: Callable[[Group, Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.groups = groups
        self.orders = [score.double().argsort(stable=True) for score in scores]
        steps: list[Step] = []
        for index, (group, score) in enumerate(zip(groups, scores, strict=True)):
            ranked, leaf = worth(group, score.double())[self.orders[index]], group.leaf.find()
            steps += _steps(index, group, ranked, required[leaf], originals[leaf], limits)
        self.steps = sorted(steps, key=lambda step: step.worth)
        self._groups = torch.tensor([step.group for step in self.steps], dtype=torch.long)
        self._counts = torch.tensor([step.count for step in self.steps], dtype=torch.double)

    def counts(self, done: int) -> dict[Axis, int]:
        """How many indices of each leaf stay once the first `done` steps are taken."""
        gone = torch.bincount(self._groups[:done], self._counts[:done], minlength=len(self.groups)).long().tolist()
        return {group.leaf: group.size - count for group, count in zip(self.groups, gone, strict=True)}

    def keep(self, counts: Mapping[Axis, int]) -> dict[Axis, Tensor]:
        """Which indices stay, of the leaves that shrink."""
        result = {}
        for group, order in zip(self.groups, self.orders, strict=True):
            mask = torch.ones(group.size, dtype=torch.bool)
            mask[order[: group.size - counts[group.leaf]]] = False
            if not bool(mask.all()):
                result[group.leaf] = mask
        return result

    def meet(self, wanted: float, cost: Callable[[Remaining], float]) -> tuple[dict[Axis, int], float]:
        """The counts whose cost is nearest to what is wanted, and that cost.

        Costs fall along the order, so the point where it is passed is found by bisection; the steps behind it fill the
        gap that a large step leaves. Forced steps (worth of minus infinity) are always taken.
        """
        forced = sum(step.worth == -math.inf for step in self.steps)
        low, high = forced, len(self.steps)
        while low < high:
            middle = (low + high) // 2
            if cost(Remaining(self.counts(middle))) <= wanted:
                high = middle
            else:
                low = middle + 1
        under, over = self.counts(low), self.counts(max(low - 1, forced))
        found = [(counts, cost(Remaining(counts))) for counts in (under, over)]
        if min(abs(reached - wanted) for _, reached in found) > _CLOSE * wanted:
            found.append(self._filled(over, low, wanted, cost))
        return min(found, key=lambda pair: abs(pair[1] - wanted))

    def smallest(self, cost: Callable[[Remaining], float]) -> float:
        """The cost with every step done."""
        return cost(Remaining(self.counts(len(self.steps))))

    def _filled(
        self, counts: dict[Axis, int], behind: int, wanted: float, cost: Callable[[Remaining], float]
    ) -> tuple[dict[Axis, int], float]:
        """Go on with later steps that do not pass the point; an axis with a step passed over is closed.

        One that saves less than its part of the gap is passed over: it costs an index and fills nothing.
        """
        found, reached = dict(counts), cost(Remaining(counts))
        part = (reached - wanted) / _REFINEMENTS
        closed = {self.steps[behind - 1].group} if behind else set()
        for step in self.steps[behind : behind + _REFINEMENTS]:
            if step.group in closed:
                continue
            leaf = self.groups[step.group].leaf
            tried = {**found, leaf: found[leaf] - step.count}
            now = cost(Remaining(tried))
            if wanted <= now <= reached - part:
                found, reached = tried, now
            else:
                closed.add(step.group)
        return found, reached


def _steps(index: int, group: Group, ranked: Tensor, required: int, original: int, limits: Limits) -> list[Step]:
    multiple = 1 if group.kind in _WHOLE_KINDS else limits.multiple
    least = max(required, math.ceil(original * limits.least - 1e-9), 1)
    least = min(-(-least // multiple) * multiple, group.size)
    most = max(least, math.floor(original * limits.most + 1e-9))
    steps, left = [], group.size
    while left > least:
        down = left % multiple or multiple
        if left - down < least:
            break
        done = group.size - left
        worth = -math.inf if left > most else float(ranked[done : done + down].mean())
        steps.append(Step(worth, index, down))
        left -= down
    return steps


def impossible(what: str, share: float, smallest: float, limits: Limits) -> PassError:
    """The error for a target that cannot be reached."""
    return PassError(
        f"{share:g} of {what} cannot be reached",
        expected=f"at least {smallest:.4f} of {what}, the smallest that is legal here",
        found=f"share={share:g} with least={limits.least:g}, multiple={limits.multiple}",
        hint="raise the share, lower `least` or `multiple`, or keep fewer layers",
    )
