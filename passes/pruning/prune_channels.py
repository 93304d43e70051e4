"""Cut out whole channels, heads and experts."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .allocation import Limits, Removal, impossible, required
from .analysis import Dimensions, dimensions
from .axes import Axis, Remaining, frozen, leaves
from .costs import Costs
from .counts import by_axis, named
from .criteria import Criterion, Magnitude
from .cut import cut
from .flow import Kind
from .groups import Group, groups
from .targets import Macs, Target

if TYPE_CHECKING:
    from ..preferences import Preferences

Key = tuple[tuple[tuple[str, int], ...], int]

_NEAR = 0.02
"""How far from a target a result may be before the report says that it is the closest legal point."""


class Ranking(enum.Enum):
    """GLOBAL: the least worth of all indices go first. LOCAL: every axis loses the same share, its least worth.

    COST: the least worth for what goes with them in the target's measure, for criteria that do not estimate the loss.
    What an axis loses is what has gone over what is left of it, as noise over signal, which adds up over layers; so an
    axis is spared more the less is left of it. Criteria in units of the loss weigh costs in GLOBAL already.
    """

    GLOBAL = "global"
    LOCAL = "local"
    COST = "cost"


@dataclass(frozen=True)
class Reference:
    """What shares are counted from when a program is pruned in steps: its cost and its axes' sizes at first.

    sizes: by what an axis cuts, and its place among those that cut the same. named: the same by name, see `counts`.
    """

    cost: float
    sizes: Mapping[Key, int]
    named: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program, step: PruneChannels) -> Reference:
        """The program as it is now."""
        found = dimensions(program, free_inputs=step.free_inputs, free_outputs=step.free_outputs)
        every = groups(program, found)
        cost = step.target.cost(Costs(program, found), every, Remaining({}))
        sizes = {name: group.size for name, group in named(every).items()}
        return cls(cost, {key: group.size for key, group in _keyed(every)}, sizes)


def _keyed(every: Sequence[Group]) -> list[tuple[Key, Group]]:
    seen: Counter[tuple[tuple[str, int], ...]] = Counter()
    found = []
    for group in every:
        cuts = tuple((member.name, member.dim) for member in group.members)
        found.append(((cuts, seen[cuts]), group))
        seen[cuts] += 1
    return found


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Cut indices out of every tensor that has them, so that what is left is a smaller program and not a masked one.

        %conv = conv2d(%x, @w [64, 3, 3, 3])            %conv = conv2d(%x, @w [40, 3, 3, 3])
        %relu = relu(%conv)                       ->    %relu = relu(%conv)
        %next = conv2d(%relu, @v [32, 64, 1, 1])        %next = conv2d(%relu, @v [32, 40, 1, 1])

    The outputs are those of the program before with the same indices silenced: counted as 0 where they are summed,
    left out of softmax, maximum and the statistics of layer and group norm.

    target: what is to be left, as `Macs(0.5)`, met within 2 % or as near as is legal.
    criterion: what an index is worth. ranking: over all axes together, or each by itself.
    least, most: the share of each axis that stays at least and at most.
    multiple: the counts that the target likes, such as 8; heads and experts are counted singly. An axis smaller than
        that stays.
    kinds: only these kinds of axes, as `(Kind.HEADS,)`; empty means all.
    layers: regular expressions of parameter names; only axes that cut one of them. Empty means all.
    keep: regular expressions of parameter names; axes that would cut one of them stay.
    free_inputs, free_outputs: let the model's own inputs or outputs shrink as well.
    reference: what shares are counted from; None means the program given. See `Gradually`.
    counts: how many indices stay, by name of an axis, as `{"stem.weight": 24}`; what is not named stays whole. Where it
        is given, the criterion alone says which go, and target, ranking and limits say nothing. See `allot`.

    Raises PassError where the target cannot be reached (with the smallest that can), where a layer that is asked for is
    pinned (with the operator that pins it), or where an expression matches nothing; CalibrationError where a criterion
    has no data.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    target: Target = field(default_factory=lambda: Macs(0.5))
    criterion: Criterion = field(default_factory=Magnitude)
    ranking: Ranking = Ranking.GLOBAL
    least: float = 0.1
    most: float = 1.0
    multiple: int = 1
    kinds: tuple[Kind, ...] = ()
    layers: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    free_inputs: bool = False
    free_outputs: bool = False
    reference: Reference | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= 1 or self.multiple < 1:
            found = f"least={self.least:g}, most={self.most:g}, multiple={self.multiple}"
            raise PassError("no limits", expected="0 <= least <= most <= 1 and multiple >= 1", found=found)
        for expression in (*self.layers, *self.keep):
            try:
                re.compile(expression)
            except re.error as error:
                raise PassError(f"{expression!r} is not a regular expression: {error}") from error

    @classmethod
    def suited(cls, likes: Preferences, **options: Any) -> PruneChannels:
        """With the multiple that a target likes where no other is asked for."""
        return cls(**{"multiple": likes.multiples.channels, **options})

    def run(self, program: Program) -> PassResult:
        """Score, choose, cut."""
        made = self._removal(program)
        notes: tuple[str, ...] = ()
        if self.counts:
            counts = by_axis(self._still(made.every), made.every, made.chosen, made.needs)
        else:
            counts, reached = self._meet(made)
            notes = self._notes(made.chosen, counts, reached, made.found)
        keep = made.removal.keep(counts)
        promised = set(program.sparsity)
        cut(program, made.found, keep)
        dropped = sorted(promised - set(program.sparsity))
        notes = (*notes, *(f"{name} is cut and no longer promised to be sparse" for name in dropped[:4]))
        return PassResult(program, bool(keep), notes)

    def _still(self, every: Sequence[Group]) -> Mapping[str, int]:
        """The counts of axes that can still shrink: one that an earlier step left a single index is none any more."""
        known, left = {} if self.reference is None else self.reference.named, named(every)
        return {name: count for name, count in self.counts.items() if name in left or name not in known}

    def allot(self, program: Program) -> dict[str, int]:
        """How many indices of each axis would stay, by name, as `counts` takes them. The program stays as it is."""
        made = self._removal(program)
        counts, _ = self._meet(made)
        return {name: counts[group.leaf] for name, group in named(made.every).items() if group.leaf in counts}

    def _removal(self, program: Program) -> _Made:
        found = dimensions(program, free_inputs=self.free_inputs, free_outputs=self.free_outputs)
        every = groups(program, found)
        chosen = self._choose(program, found, every)
        gathered = self.criterion.gather(program, chosen)
        scored = [(group, score) for group in chosen if (score := self._score(group, gathered)) is not None]
        if not scored:
            raise PassError("the criterion has no score for any axis", found=type(self.criterion).__name__)
        chosen, scores = [group for group, _ in scored], [score for _, score in scored]
        limits = Limits(self.least, self.most, self.multiple)
        needs = required([(axis, count) for axis, count, _ in found.minima], chosen)
        costs = Costs(program, found)
        worth = (lambda _, score: score) if self.counts else partial(self._worth, costs, chosen)
        removal = Removal(chosen, scores, needs, self._originals(every), limits, worth)
        return _Made(found, every, chosen, needs, costs, limits, removal)

    def _choose(self, program: Program, found: Dimensions, every: Sequence[Group]) -> list[Group]:
        self._refuse_unmatched(program, found)
        chosen = [
            group
            for group in every
            if (not self.kinds or group.kind in self.kinds)
            and (not self.layers or _cuts(group, self.layers))
            and not _cuts(group, self.keep)
        ]
        if not chosen:
            pins = sorted({str(leaf.pins[0]) for leaf in found.leaves if leaf.pins})
            raise PassError(
                "there is nothing to prune",
                expected="an axis that can shrink, of the kinds and layers asked for",
                found=f"{len(every)} axes that can, none of them asked for" if every else "; ".join(pins[:4]),
            )
        return chosen

    def _refuse_unmatched(self, program: Program, found: Dimensions) -> None:
        for expression in (*self.layers, *self.keep):
            matched = [name for name in found.tensors if re.search(expression, name)]
            if not matched:
                raise PassError(f"{expression!r} matches no parameter", hint="see `print(program)`")
            inside = [leaf for name in matched for axis in found.tensors[name] for leaf in leaves(axis)]
            if expression in self.layers and all(map(frozen, inside)):
                pins = sorted({str(pin) for leaf in inside for pin in leaf.pins})
                free = [
                    f"free_{what}s=True"
                    for what in ("input", "output")
                    if any(f"an {what} keeps" in pin for pin in pins)
                ]
                hint = f"{' and '.join(free)} lets it shrink" if free else None
                raise PassError(f"{matched[0]} is pinned and cannot be pruned", found="; ".join(pins[:4]), hint=hint)

    def _score(self, group: Group, gathered: object) -> Tensor | None:
        score = self.criterion.score(group, gathered)
        if score is None:
            return None
        if tuple(score.shape) != (group.size,) or not bool(torch.isfinite(score).all()):
            raise PassError(
                f"{type(self.criterion).__name__} did not score {group.name}",
                expected=f"{group.size} finite numbers",
                found=f"{tuple(score.shape)}, {int((~torch.isfinite(score)).sum())} not finite",
            )
        return score.detach().cpu()

    def _originals(self, every: Sequence[Group]) -> dict[Axis, int]:
        """The size that each axis had in the reference."""
        known = {} if self.reference is None else self.reference.sizes
        return {group.leaf.find(): known.get(key, group.size) for key, group in _keyed(every)}

    def _worth(self, costs: Costs, chosen: Sequence[Group], group: Group, score: Tensor) -> Tensor:
        """What the order over all axes goes by: the share of the axis that is worth less, or the score itself."""
        if self.ranking is Ranking.LOCAL:
            return (score.argsort(stable=True).argsort().double() + 1) / len(score)
        if self.criterion.in_loss or self.ranking is Ranking.COST:
            whole, less = Remaining({}), Remaining({group.leaf: group.size - 1})
            saved = self.target.cost(costs, chosen, whole) - self.target.cost(costs, chosen, less)
            return (score if self.criterion.in_loss else _lost(score)) / max(saved, 1e-30)
        return score if self.criterion.comparable else score / score.mean().clamp(min=1e-30)

    def _meet(self, made: _Made) -> tuple[dict[Axis, int], float]:
        def cost(left: Remaining) -> float:
            return self.target.cost(made.costs, made.chosen, left)

        whole = cost(Remaining({})) if self.reference is None else self.reference.cost
        smallest = made.removal.smallest(cost)
        if smallest > whole * self.target.share * (1 + _NEAR):
            raise impossible(self.target.what, self.target.share, smallest / whole, made.limits)
        counts, reached = made.removal.meet(whole * self.target.share, cost)
        return counts, reached / whole

    def _notes(
        self, chosen: Sequence[Group], counts: dict[Axis, int], reached: float, found: Dimensions
    ) -> tuple[str, ...]:
        asked = self.target.share
        near = "" if abs(reached - asked) <= _NEAR * asked else ", the closest legal point"
        before, after = sum(group.size for group in chosen), sum(counts.values())
        pins = [leaf.pins[0] for leaf in found.leaves if leaf.pins and leaf.pins[0].why not in _EXPECTED]
        pinned = {pin.why: str(pin) for pin in reversed(pins)}.values()
        notes = [f"{reached:.3f} of {self.target.what} left, asked {asked:g}{near}"]
        notes.append(f"{before - after} of {before} indices of {len(chosen)} axes went")
        notes += [f"pinned by {why}" for why in sorted(pinned)[:4]]
        return tuple(notes)


@dataclass(frozen=True)
class _Made:
    """What is known of a program before it is decided how much goes. needs: what operators need of an axis."""

    found: Dimensions
    every: Sequence[Group]
    chosen: Sequence[Group]
    needs: Mapping[Axis, int]
    costs: Costs
    limits: Limits
    removal: Removal


def _lost(score: Tensor) -> Tensor:
    """What each index adds to the share of an axis that has gone over what is left, when they go in their order."""
    order = score.argsort(stable=True)
    ranked = score[order].clamp(min=0)
    before = ranked.flip(0).cumsum(0).flip(0)
    after = before - ranked
    added = ranked * before[:1] / (before * after).clamp(min=1e-30)
    return torch.empty_like(added).scatter(0, order, added)


_EXPECTED = ("kernel", "spatial", "an input keeps its shape", "an output keeps its shape", "taken in steps")
"""Reasons that no one wonders about."""


def _cuts(group: Group, expressions: Sequence[str]) -> bool:
    return any(re.search(expression, member.name) for expression in expressions for member in group.members)
