"""What an index is worth: small objects from a group to a score for each of its indices. The lowest go first.

@dataclass(frozen=True)
class Largest(Criterion):
    def score(self, group, gathered):
        return sum(member.rows().abs().amax(1) for member in group.members)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tersor.ir.errors import PassError
from tersor.ir.program import Program

from ..processes import summed
from .gathering import Loss, channel_variances, gradients, require_data
from .groups import Group, Member

aten = torch.ops.aten


@dataclass(frozen=True)
class Criterion(ABC):
    """From a group to a score an index.

    comparable: whether scores of different groups are on one scale. Where they are not, a global ranking divides them
        by their group's mean.
    in_loss: whether they are changes of the loss. A global ranking then divides them by what an index costs in the
        target's measure, so that what goes first costs the loss least for what it saves.
    """

    comparable: ClassVar[bool] = False
    in_loss: ClassVar[bool] = False

    def gather(self, program: Program, groups: Sequence[Group]) -> Any:
        """Run what data the criterion needs through the program, once; `score` gets the result."""
        return None

    @abstractmethod
    def score(self, group: Group, gathered: Any) -> Tensor | None:
        """The worth of each index, float[indices]; None where the criterion has nothing to say, so that all stay."""


@dataclass(frozen=True)
class Magnitude(Criterion):
    """The size of the weights that go with an index (Li et al. 2017, arXiv:1608.08710).

    norm: 1 or 2. normalized: each parameter's scores are divided by their mean, so that a large tensor does not drown
        a small one (the group norm of Fang et al. 2023, arXiv:2301.12900).
    """

    norm: int = 2
    normalized: bool = False

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise PassError("norm is 1 or 2", found=self.norm)

    def score(self, group: Group, gathered: Any) -> Tensor:
        """Sums of absolute values, or of squares."""
        parts = []
        for member in group.members:
            part = member.rows().double().abs().pow(self.norm).sum(1)
            parts.append(part / part.mean().clamp(min=1e-30) if self.normalized else part)
        total = torch.stack(parts).sum(0)
        return total if self.norm == 1 or self.normalized else total.sqrt()


@dataclass(frozen=True)
class Taylor(Criterion):
    """How much the loss changes when an index goes, to first order: |sum of weight * gradient| (arXiv:1906.10771).

    batches: `(inputs.., targets..)`; loss: `loss(outputs, *targets)`. The mean over the batches is taken.
    """

    comparable: ClassVar[bool] = True
    in_loss: ClassVar[bool] = True

    batches: Iterable[Any] | None = None
    loss: Loss | None = None

    def gather(self, program: Program, groups: Sequence[Group]) -> Any:
        """A score for each group."""
        return _over_batches(self, program, groups, lambda product: product.sum(1), torch.abs)

    def score(self, group: Group, gathered: Any) -> Tensor:
        """What was gathered."""
        found: Tensor = gathered[group.leaf.find()]
        return found


@dataclass(frozen=True)
class Fisher(Criterion):
    """How much the loss changes, to second order, by the diagonal of the empirical Fisher matrix: half the sum of
    (weight * gradient)^2 (LeCun et al. 1990, with the Hessian of Theis et al. 2018, arXiv:1801.05787).

    batches, loss: as for `Taylor`; the smaller the batches, the nearer to the Hessian.
    """

    comparable: ClassVar[bool] = True
    in_loss: ClassVar[bool] = True

    batches: Iterable[Any] | None = None
    loss: Loss | None = None

    def gather(self, program: Program, groups: Sequence[Group]) -> Any:
        """A score for each group."""
        return _over_batches(self, program, groups, lambda product: product.square().sum(1) / 2, lambda total: total)

    def score(self, group: Group, gathered: Any) -> Tensor:
        """What was gathered."""
        found: Tensor = gathered[group.leaf.find()]
        return found


def _over_batches(criterion: Taylor | Fisher, program: Program, groups: Sequence[Group], each: Any, last: Any) -> Any:
    """The mean over batches of `last(sum over members of each(weight * gradient))`, by leaf."""
    batches = require_data(criterion, criterion.batches, criterion.loss)
    totals: dict[Any, Tensor] = {}
    count = 0
    for found in gradients(program, batches, criterion.loss):
        count += 1
        products = {name: program.tensor(name).detach().double() * grad for name, grad in found.items()}
        for group in groups:
            parts = [each(member.rows(products[member.name])) for member in group.members if member.name in products]
            if parts:
                leaf = group.leaf.find()
                totals[leaf] = totals.get(leaf, 0) + last(torch.stack(parts).sum(0))
    unseen = torch.zeros((), dtype=torch.float64)
    count = int(summed(torch.tensor(count)))
    leaves = {group.leaf.find(): group.size for group in groups}
    return {leaf: summed(totals.get(leaf, unseen.expand(size))) / count for leaf, size in leaves.items()}


@dataclass(frozen=True)
class ActivationVariance(Criterion):
    """How much an index's activations vary over data: one that is nearly constant carries little.

    batches: what the model is called with.
    """

    batches: Iterable[Any] | None = None

    def gather(self, program: Program, groups: Sequence[Group]) -> dict[Any, Tensor]:
        """The variance of each index where it is consumed, by leaf."""
        return channel_variances(program, groups, require_data(self, self.batches))

    def score(self, group: Group, gathered: Any) -> Tensor | None:
        """The mean of its variances; None for an axis that no activation is consumed along."""
        found: Tensor | None = gathered.get(group.leaf.find())
        return found


@dataclass(frozen=True)
class GeometricMedian(Criterion):
    """How far an index's filters are from all others: the nearest to the middle can be replaced (arXiv:1811.00250)."""

    def score(self, group: Group, gathered: Any) -> Tensor:
        """Sums of distances between the rows that make the index, normalized by member."""
        matrices = [member for member in group.members if member.tensor.dim() > 1]
        makers = [member for member in matrices if member.dim == 0] or matrices or list(group.members)
        parts = [_distances(member) for member in makers]
        return torch.stack([part / part.mean().clamp(min=1e-30) for part in parts]).sum(0)


def _distances(member: Member) -> Tensor:
    rows = member.rows().float()
    return torch.cdist(rows, rows).sum(1).double()


@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """The size of the factor that batch norm gives a channel (Liu et al. 2017, arXiv:1708.06519).

    Axes without batch norm stay whole.
    """

    comparable: ClassVar[bool] = True

    def gather(self, program: Program, groups: Sequence[Group]) -> frozenset[str]:
        """The names of batch norm's factors. Raises PassError where there are none."""
        nodes = program.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
        factors = {id(program.constant(node.args[1])) for node in nodes}
        names = frozenset(name for name, tensor in program.parameters().items() if id(tensor) in factors)
        if not names:
            raise PassError("batch norm's factors are asked for, and there is no batch norm", hint="Magnitude()")
        return names

    def score(self, group: Group, gathered: Any) -> Tensor | None:
        """The mean of its factors' sizes."""
        parts = [member.rows().abs().mean(1).double() for member in group.members if member.name in gathered]
        return torch.stack(parts).mean(0) if parts else None


@dataclass(frozen=True)
class Random(Criterion):
    """Chance: what every other criterion has to beat.

    seed: the same one gives the same numbers.
    """

    comparable: ClassVar[bool] = True

    seed: int = 0

    def gather(self, program: Program, groups: Sequence[Group]) -> dict[Any, Tensor]:
        """Numbers in [0, 1), the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return {group.leaf.find(): torch.rand(group.size, generator=generator) for group in groups}

    def score(self, group: Group, gathered: Any) -> Tensor:
        """Its numbers."""
        found: Tensor = gathered[group.leaf.find()]
        return found
