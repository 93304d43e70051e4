"""Reorder channels so that a pattern costs less, and absorb the order exactly into the neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.sparsity import NM, Block, Pattern, Unstructured
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, on_the_cpu
from ..progress import track
from ..pruning.analysis import dimensions
from ..pruning.axes import Axis, Form
from .layers import layers
from .patterns import keep_mask, misfit


@dataclass(frozen=True)
class PermuteChannels(Pass):
    """Find an order of input channels in which a pattern keeps more magnitude (Pool and Yu 2021).

    An axis that nothing pins may be reordered in every tensor at once, and the program computes the same: producers
    give their channels in the new order, consumers read them in it. The search swaps channels between neighbouring
    groups of the pattern while that helps, which never makes it worse.

    pattern: NM or Block, as it will be given to `Sparsify`. rounds: how often all groups are paired anew.
    seed: of the pairing.

    Raises PassError for a pattern that does not depend on the order.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.EXACT

    pattern: Pattern = field(default_factory=lambda: NM(2, 4))
    rounds: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, NM | Block):
            raise PassError(f"{self.pattern} does not depend on the order of channels", expected="NM or Block")

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Search each axis that some weight sums over, then reorder all tensors once."""
        found = dimensions(program)
        readers = self._readers(program, found.tensors)
        orders: dict[Axis, Tensor] = {}
        before = after = 0.0
        for leaf, weights in track(list(readers.items()), "channel orders"):
            generator = torch.Generator().manual_seed(self.seed)
            order = search(weights, self.pattern, self.rounds, generator)
            was, now = (sum(kept(weight[:, :, places], self.pattern) for weight in weights)
                        for places in (torch.arange(leaf.size), order))  # fmt: skip
            before, after = before + was, after + now
            if now > was:
                orders[leaf] = order
        tensors = {
            name: _reordered(program.tensor(name).detach(), axes, orders)
            for name, axes in found.tensors.items()
            if any(_has(axis, orders) for axis in axes)
        }
        program.set_tensors(tensors)
        program.sparsity = {
            name: entry
            for name, entry in program.sparsity.items()
            if name not in tensors or isinstance(entry, Unstructured)
        }
        share = f"{after / before - 1:+.2%} magnitude kept" if before else "no axis to reorder"
        return PassResult(program, bool(orders), (f"{len(orders)} of {len(readers)} axes reordered", share))

    def _readers(self, program: Program, tensors: Mapping[str, tuple[Axis, ...]]) -> dict[Axis, list[Tensor]]:
        """For each free axis the weights that sum over exactly it, as [out, kernel positions, in]."""
        readers: dict[Axis, list[Tensor]] = {}
        for name, layer in layers(program).items():
            leaf = tensors[name][1].find()
            free = leaf.form is Form.LEAF and not leaf.pins and leaf.size > 1
            if free and misfit(self.pattern, layer.weight) is None:
                weight = layer.weight.movedim(1, -1)
                readers.setdefault(leaf, []).append(weight.reshape(len(weight), -1, leaf.size).abs())
        return readers


def _width(pattern: Pattern) -> int:
    return pattern.m if isinstance(pattern, NM) else pattern.columns if isinstance(pattern, Block) else 1


def kept(weight: Tensor, pattern: Pattern) -> float:
    """The magnitude that the pattern keeps of weights [out, kernel positions, in]."""
    matrix = weight.flatten(1).double()
    return float((matrix * keep_mask(pattern, matrix)).sum())


def search(weights: Sequence[Tensor], pattern: Pattern, rounds: int, generator: torch.Generator) -> Tensor:
    """An order of the last dimension, int64[in]: swaps between pairs of groups, each the best of its pair."""
    size, width = weights[0].shape[-1], _width(pattern)
    order = torch.arange(size)
    groups = size // width
    swaps = list(itertools.product(range(width), range(width, 2 * width)))
    for _ in range(rounds if groups > 1 and width > 1 else 0):
        pairs = torch.randperm(groups, generator=generator)[: groups // 2 * 2].reshape(-1, 2)
        places = (pairs[:, :, None] * width + torch.arange(width)).flatten(1)
        candidates = [places]
        for left, right in swaps:
            swapped = places.clone()
            swapped[:, left], swapped[:, right] = places[:, right], places[:, left]
            candidates.append(swapped)
        tried = torch.stack([order[candidate] for candidate in candidates])
        worth = sum(_worth(weight[:, :, tried], pattern, width) for weight in weights)
        assert isinstance(worth, Tensor)
        best = worth.argmax(0)
        order[places] = tried[best, torch.arange(len(places))]
    return order


def _worth(values: Tensor, pattern: Pattern, width: int) -> Tensor:
    """What each candidate keeps, [candidates, pairs], of values [out, positions, candidates, pairs, 2 * width].

    For N:M that is the magnitude kept. What a block keeps depends on all others, so its sums are squared: the more
    unequal they are, the more the largest hold.
    """
    grouped = values.unflatten(-1, (2, width))
    if isinstance(pattern, NM):
        largest: Tensor = grouped.topk(pattern.n, dim=-1).values.sum((-1, -2)).sum((0, 1))
        return largest
    assert isinstance(pattern, Block)
    sums = grouped.sum(-1)
    padded = torch.nn.functional.pad(sums.movedim(0, -1), (0, -len(sums) % pattern.rows))
    squares: Tensor = padded.unflatten(-1, (-1, pattern.rows)).sum(-1).square().sum((-1, -2)).sum(0)
    return squares


def _has(axis: Axis, orders: dict[Axis, Tensor]) -> bool:
    axis = axis.find()
    return axis in orders or any(_has(part, orders) for part in axis.parts)


def positions(axis: Axis, orders: dict[Axis, Tensor]) -> Tensor:
    """Where each position of an axis is read from once its leaves are reordered, int64[size]."""
    axis = axis.find()
    if axis.form is Form.LEAF:
        return orders.get(axis, torch.arange(axis.size))
    if axis.form is Form.CONCAT:
        offsets = itertools.accumulate((part.size for part in axis.parts), initial=0)
        return torch.cat([positions(part, orders) + at for part, at in zip(axis.parts, offsets, strict=False)])
    found = torch.zeros(1, dtype=torch.long)
    for part in axis.parts:
        found = (found[:, None] * part.size + positions(part, orders)[None, :]).reshape(-1)
    return found


def _reordered(tensor: Tensor, axes: tuple[Axis, ...], orders: dict[Axis, Tensor]) -> Tensor:
    for dim, axis in enumerate(axes):
        if _has(axis, orders):
            tensor = tensor.index_select(dim, positions(axis, orders).to(tensor.device))
    return tensor
