"""Which kernel a convolution runs on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.ir.sparsity import Block
from tersor.passes.preferences import FastPattern

from .counted import Work
from .pack import GROUP, round_up

Weight = NDArray[Any]


@dataclass(frozen=True)
class Choice:
    """A kernel's name, and the reason in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plane:
    """Where a convolution writes: rows of `width` pixels, `flat` where they follow each other without a gap.

    magic: whether the cheaper requantization is proven for it.
    """

    rows: int = 14
    width: int = 14
    flat: bool = True
    magic: bool = True


KERNELS: dict[str, dict[str, tuple[int, int] | None]] = {
    "neon": {"dense": None, "1x4": (1, 4)},
    "dotprod": {"dense": None, "1x4": (1, 4), "2x4": (2, 4), "4x4": (4, 4)},
    "i8mm": {"dense": None, "2x8": (2, 8), "4x8": (4, 8)},
}
"""By instruction set: the blocks of weights that each kernel skips where they are all zero; a dense one skips none."""

VECTOR_KERNELS: dict[str, dict[str, tuple[int, int] | None]] = {
    "neon": {"dense_vector": None},
    "dotprod": {"dense_vector": None, "4x4_vector": (4, 4)},
}
"""The same for a linear layer on one row. i8mm computes two rows at a time, and so takes those of dotprod."""

_LANES = {"neon": 4, "dotprod": 4, "i8mm": 8}
"""Channels that a kernel takes together."""

_GAIN = 1.03
"""How much faster than the dense kernel a sparse one has to be: about the error of the counts."""

_CHANNELS = 128
"""Of the layer by which a pattern of zeros is judged."""


def choose(isa: str, weight: Weight, *, vector: bool = False, plane: Plane | None = None) -> Choice:
    """The kernel with the fewest instructions for these weights, int8[out, in, kh, kw]; vector: for one pixel."""
    plane = plane or Plane()
    known = VECTOR_KERNELS.get(isa, VECTOR_KERNELS["dotprod"]) if vector else KERNELS[isa]
    costs = {name: work_of(isa, name, weight, plane).instructions() for name in known}
    best = min(costs, key=lambda name: costs[name] * (1.0 if name.startswith("dense") else _GAIN))
    zeros = 1 - np.count_nonzero(weight) / max(weight.size, 1)
    macs = max(weight.size, 1) * (1 if vector else plane.rows * plane.width)
    listed = ", ".join(f"{name} {cost / macs:.4f}" for name, cost in costs.items())
    return Choice(best, f"{zeros:.0%} zeros; instructions a dense MAC: {listed}")


def work_of(isa: str, name: str, weight: Weight, plane: Plane) -> Work:
    """What a kernel has to do for a convolution with these weights."""
    out, channels, *window = weight.shape
    taps, lanes = int(np.prod(window)), _LANES[isa]
    if name == "depthwise":
        return Work(f"depthwise_c{lanes}_neon", out, 1, taps, plane.rows, plane.width, 0, plane.flat, plane.magic)
    if name.endswith("_vector"):
        dot = "neon" if isa == "neon" else "dotprod"
        block = VECTOR_KERNELS[dot][name]
        kernel = f"linear_{name.removesuffix('_vector')}_{dot}"
        return Work(kernel, out, -(-channels // 4), 1, 1, 1, _kept(weight, block), True, plane.magic)
    kept = _kept(weight, KERNELS[isa][name])
    blocks = -(-channels // lanes)
    return Work(f"{name}_{isa}", out, blocks, taps, plane.rows, plane.width, kept, plane.flat, plane.magic)


def fast_patterns(isa: str) -> tuple[FastPattern, ...]:
    """The blocks that a kernel skips, the smallest first, from the density at which that is faster than dense."""
    found = []
    for name, block in KERNELS[isa].items():
        if block is not None:
            found.append(FastPattern(Block(*block, _break_even(isa, name, block))))
    return tuple(sorted(found, key=lambda fast: fast.pattern.rows * fast.pattern.columns))  # type: ignore[attr-defined]  # blocks


def _break_even(isa: str, name: str, block: tuple[int, int]) -> float:
    """The density at which a kernel takes what the dense one takes; it is linear in the blocks that are kept."""
    empty = np.zeros((_CHANNELS, _CHANNELS, 1, 1), np.int8)
    none, full, dense = (
        work_of(isa, kernel, weight, Plane()).instructions()
        for kernel, weight in ((name, empty), (name, empty + 1), ("dense", empty))
    )
    return float(min(1.0, (dense / _GAIN - none) / (full - none)))


def _kept(weight: Weight, block: tuple[int, int] | None) -> int:
    """How many blocks of weights are not all zero."""
    if block is None:
        return 0
    rows, columns = block
    out, channels = round_up(weight.shape[0], GROUP), round_up(weight.shape[1], columns)
    padded = np.zeros((out, channels, *weight.shape[2:]), bool)
    padded[: weight.shape[0], : weight.shape[1]] = weight != 0
    return int(padded.reshape(out // rows, rows, channels // columns, columns, -1).any(axis=(1, 3)).sum())
