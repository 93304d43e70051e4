"""Instructions that a NEON kernel executes per dense multiply-accumulate, counted under emulation; bits are checked.

A 1x1 convolution, 256 to 256 channels on 196 pixels. Sparse kernels are charged for the dense product, so that what
they save shows. Zeros are whole blocks at random places; in the unstructured rows, single weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.backends.neon import pack

from .neon.counting import Call, count
from .results import Row

PIXELS, CHANNELS = 196, 256
MACS = PIXELS * CHANNELS * CHANNELS
PEER = "XNNPACK"


@dataclass(frozen=True)
class Figure:
    """One row: a kernel by its name in pack.py and its place in run_cases.c, and what is wanted of it."""

    what: str
    kernel: int
    form: str
    goal: float | None = None
    kept: float = 1.0
    block: tuple[int, int] = (1, 1)
    peer: float | None = None
    peer_name: str = ""
    magic: bool = True


def _sparse(what: str, kernel: int, form: str, block: tuple[int, int], goals: tuple[float | None, ...]) -> list[Figure]:
    kept = zip((0.5, 0.25, 0.1), goals, strict=True)
    return [Figure(f"{what}, {1 - k:.0%} zero", kernel, form, goal, k, block) for k, goal in kept]


FIGURES = (
    Figure("dense, dotprod", 1, "dense_dotprod", 0.080, peer=0.0849, peer_name=PEER),
    Figure("dense, i8mm", 2, "dense_i8mm", 0.050, peer=0.0567, peer_name=PEER),
    Figure("dense, baseline", 0, "dense_neon", 0.300, peer=0.328, peer_name=PEER),
    Figure("dense, dotprod, exact requantization", 1, "dense_dotprod", magic=False),
    Figure("dense, i8mm, exact requantization", 2, "dense_i8mm", magic=False),
    Figure("dense, baseline, exact requantization", 0, "dense_neon", magic=False),
    *_sparse("4x4, dotprod", 6, "4x4", (4, 4), (0.050, 0.028, 0.015)),
    *_sparse("2x4, dotprod", 5, "2x4", (2, 4), (None, None, None)),
    *_sparse("1x4, dotprod", 4, "1x4", (1, 4), (0.065, 0.036, 0.0185)),
    *_sparse("4x8, i8mm", 8, "4x8", (4, 8), (0.031, 0.019, 0.012)),
    *_sparse("2x8, i8mm", 7, "2x8", (2, 8), (None, None, None)),
    *_sparse("1x4, baseline", 3, "1x4", (1, 4), (0.160, 0.088, 0.045)),
    Figure("unstructured, dotprod, 75% zero", 4, "1x4", 0.085, 0.25, peer=0.18, peer_name=f"{PEER} fp32 SpMM"),
    Figure("unstructured, dotprod, 90% zero", 4, "1x4", 0.042, 0.10, peer=0.075, peer_name=f"{PEER} fp32 SpMM"),
)


def run(quick: bool) -> list[Row]:
    """A row a kernel and density. Counting is exact and quick, so a quick run does the same."""
    del quick
    rng = np.random.default_rng(0)
    counts = count([_call(rng, figure) for figure in FIGURES])
    return [_row(figure, found / MACS) for figure, found in zip(FIGURES, counts, strict=True)]


def _row(figure: Figure, ours: float) -> Row:
    ratio = figure.peer / ours if figure.peer else None
    goal = f"<= {figure.goal:g}" if figure.goal else ""
    note = "" if figure.goal is None or ours <= figure.goal else "goal missed"
    return Row(figure.what, ours, "insns/MAC", figure.peer, figure.peer_name, ratio, goal, note)


def _call(rng: np.random.Generator, figure: Figure) -> Call:
    weight = _weight(rng, figure)
    dense = figure.form in pack.DENSE
    block = (pack.DENSE[figure.form] if dense else pack.SPARSE[figure.form]).block
    x = rng.integers(-128, 128, (CHANNELS, PIXELS), dtype=np.int8)
    bias = rng.integers(-1000, 1000, CHANNELS).astype(np.int32)
    x_zero, y_zero, low, high = -7, 5, -120, 127
    acc = weight.astype(np.int64) @ (x.astype(np.int64) - x_zero) + bias[:, None]
    scale = (120 / (np.abs(acc).max(1) + 1)).astype(np.float32)
    rounded = np.rint(acc.astype(np.float32) * scale[:, None]).astype(np.int64) + y_zero
    taps, step = np.zeros(1, np.int32), PIXELS * block
    empty = np.zeros(0, np.int32)
    kernel = weight[:, :, None, None]
    if dense:
        arrays = pack.pack_dense(kernel, pack.DENSE[figure.form]), empty, empty
    else:
        sparse = pack.pack_sparse(kernel, pack.SPARSE[figure.form], taps, step)
        arrays = sparse.stream, sparse.group_starts, sparse.block_counts
    folded = pack.fold_bias(bias, kernel, x_zero, magic=figure.magic)
    given = np.concatenate([_blocked(x, block), np.zeros(pack.SLACK, np.int8)])
    sizes = (CHANNELS, 1, PIXELS, CHANNELS // block, 1, step, step, step, step)
    whole = (0, PIXELS, 0, CHANNELS // pack.GROUP, 0, 0)
    integers = (*sizes, y_zero, low, high, int(figure.magic), *whole)
    expected = _blocked(np.clip(rounded, low, high).astype(np.int8), block)
    return Call(figure.kernel, integers, (taps, *arrays, folded, scale, given, np.zeros_like(expected)), expected)


def _weight(rng: np.random.Generator, figure: Figure) -> NDArray[np.int8]:
    """Weights without a zero, of which exactly the wanted share of blocks is kept."""
    weight = rng.integers(1, 128, (CHANNELS, CHANNELS)) * rng.choice([-1, 1], (CHANNELS, CHANNELS))
    rows, columns = figure.block
    blocks = CHANNELS // rows * (CHANNELS // columns)
    keep = np.zeros(blocks, bool)
    keep[rng.permutation(blocks)[: round(figure.kept * blocks)]] = True
    mask = keep.reshape(CHANNELS // rows, -1).repeat(rows, 0).repeat(columns, 1)
    masked: NDArray[np.int8] = (weight * mask).astype(np.int8)
    return masked


def _blocked(x: NDArray[np.int8], block: int) -> NDArray[np.int8]:
    blocks = x.reshape(len(x) // block, block, -1).transpose(0, 2, 1)
    flat: NDArray[np.int8] = np.ascontiguousarray(blocks).reshape(-1)
    return flat
