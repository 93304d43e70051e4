"""Which kernel a convolution runs on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.ir.sparsity import Block
from tersor.passes.preferences import FastPattern

from .pack import round_up

Weight = NDArray[Any]


@dataclass(frozen=True)
class Cost:
    """What a kernel was measured to take at 196 pixels, 256 x 256 channels: instructions for each MAC that it does.

    rows, columns: the block of weights that it skips when it is all zero; a dense kernel skips nothing.
    """

    per_mac: float
    rows: int = 0
    columns: int = 0


@dataclass(frozen=True)
class Choice:
    """A kernel's name, and the reason in words."""

    name: str
    reason: str


COSTS: dict[str, dict[str, Cost]] = {
    "neon": {"dense": Cost(0.300), "1x4": Cost(0.320, 1, 4)},
    "dotprod": {
        "dense": Cost(0.080),
        "1x4": Cost(0.130, 1, 4),
        "2x4": Cost(0.115, 2, 4),
        "4x4": Cost(0.100, 4, 4),
    },
    "i8mm": {"dense": Cost(0.050), "2x8": Cost(0.075, 2, 8), "4x8": Cost(0.062, 4, 8)},
}
"""By instruction set and kernel; benchmarks/results/neon_kernels.json has the measurements."""

_LANES = {"neon": 4, "dotprod": 4, "i8mm": 8}
"""Channels that a dense kernel takes together."""

VECTOR_COSTS: dict[str, dict[str, Cost]] = {
    "neon": {"dense_vector": Cost(0.35)},
    "dotprod": {"dense_vector": Cost(0.15), "4x4_vector": Cost(0.40, 4, 4)},
}
"""The same for a linear layer on one row. i8mm computes two rows at a time, and so takes those of dotprod."""


DEPTHWISE = 0.75
"""Instructions a multiply-accumulate of a depthwise convolution."""


def instructions(isa: str, kernel: str, weight: Weight | None) -> float:
    """What a kernel takes for one pixel, its channels filled up to whole blocks; for one MAC where there is no weight.

    weight: int8[out, in, kh, kw].
    """
    cost = COSTS[isa].get(kernel) or VECTOR_COSTS.get(isa, VECTOR_COSTS["dotprod"])[kernel]
    if weight is None:
        return cost.per_mac
    if cost.rows:
        return cost.per_mac * _kept(weight, cost) * weight.size
    out, inputs = round_up(weight.shape[0], _LANES[isa]), round_up(weight.shape[1], _LANES[isa])
    return cost.per_mac * out * inputs * int(np.prod(weight.shape[2:]))


def choose(isa: str, weight: Weight, *, vector: bool = False) -> Choice:
    """The kernel with the fewest instructions for these weights, int8[out, in, kh, kw]; vector: for one pixel."""
    known = VECTOR_COSTS.get(isa, VECTOR_COSTS["dotprod"]) if vector else COSTS[isa]
    costs = {name: cost.per_mac * _kept(weight, cost) for name, cost in known.items()}
    best = min(costs, key=lambda name: costs[name])
    zeros = 1 - np.count_nonzero(weight) / max(weight.size, 1)
    listed = ", ".join(f"{name} {cost:.4f}" for name, cost in costs.items())
    return Choice(best, f"{zeros:.0%} zeros; instructions a dense MAC: {listed}")


def fast_patterns(isa: str) -> tuple[FastPattern, ...]:
    """The blocks that a kernel skips, the smallest first, from the density at which that is faster than dense."""
    dense = COSTS[isa]["dense"].per_mac
    sparse = sorted((c for c in COSTS[isa].values() if c.rows), key=lambda cost: cost.rows * cost.columns)
    return tuple(FastPattern(Block(c.rows, c.columns, min(1.0, dense / c.per_mac))) for c in sparse)


def _kept(weight: Weight, cost: Cost) -> float:
    """The share of MACs that a kernel does: its blocks that are not all zero, with those that fill up channels."""
    if not cost.rows:
        return 1.0
    out, channels = (
        round_up(size, multiple) for size, multiple in zip(weight.shape[:2], (cost.rows, cost.columns), strict=True)
    )
    padded = np.zeros((out, channels, *weight.shape[2:]), bool)
    padded[: weight.shape[0], : weight.shape[1]] = weight != 0
    blocks = padded.reshape(out // cost.rows, cost.rows, channels // cost.columns, cost.columns, -1)
    return float(blocks.any(axis=(1, 3)).sum()) * cost.rows * cost.columns / max(weight.size, 1)
