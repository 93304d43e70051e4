"""The cost model of the neon target: fitted to counted instructions on a grid of shapes, judged on others.

Every call is counted under emulation in the run that checks its output. A third of the shapes is kept from the fit. A
run that is not quick writes the factors to backends/neon/counted.json, which the compiler reads.
"""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tersor.backends.neon import pack
from tersor.backends.neon.counted import FACTORS, Work

from .neon.counting import Call, count
from .results import Row

Array = NDArray[np.generic]
CHOICES = {
    "neon": ("dense_neon", "1x4_neon"),
    "dotprod": ("dense_dotprod", "1x4_dotprod", "2x4_dotprod", "4x4_dotprod"),
    "i8mm": ("dense_i8mm", "2x8_i8mm", "4x8_i8mm"),
}
"""What the compiler chooses from."""

ENTRIES = (
    "dense_neon", "dense_dotprod", "dense_i8mm", "1x4_neon", "1x4_dotprod", "2x4_dotprod", "4x4_dotprod", "2x8_i8mm",
    "4x8_i8mm", "linear_dense_neon", "linear_dense_dotprod", "linear_4x4_dotprod", "depthwise_c4_neon",
    "depthwise_c8_neon",
)  # fmt: skip
"""The kernels in the order of the table in run_cases.c."""

BLOCKS = ((1, 1), (1, 4), (2, 4), (4, 4), (4, 8))
"""Of zeros, when the choice is judged."""


@dataclass(frozen=True)
class Shape:
    """A convolution; weights are zero in blocks of rows x columns, of which `kept` are left."""

    out: int
    channels: int
    rows: int
    width: int
    kernel: int
    kept: float = 1.0
    block: tuple[int, int] = (4, 4)
    magic: bool = True


def run(quick: bool) -> list[Row]:
    """The error of each kernel's fit, on shapes that it was not fitted to, and how often its choice is the best one."""
    rng = np.random.default_rng(0)
    grid = {kernel: [_call(rng, kernel, _shape(rng, kernel)) for _ in range(12 if quick else 90)] for kernel in ENTRIES}
    trials = {isa: _trials(rng, kernels, 6 if quick else 40) for isa, kernels in CHOICES.items()}
    every = [case for cases in [*grid.values(), *itertools.chain(*trials.values())] for case in cases]
    counts = dict(zip(map(id, every), count([call for call, _ in every]), strict=True))
    rows: list[Row] = []
    fitted: dict[str, list[float]] = {}
    for kernel, cases in grid.items():
        known = [case for i, case in enumerate(cases) if i % 3]
        fitted[kernel] = _fit(
            np.array([work.loops() for _, work in known]), np.array([counts[id(c)] for c in known], float)
        )
        errors = [abs(_expected(case, fitted) / counts[id(case)] - 1) for case in cases[::3]]
        rows.append(Row(f"{kernel}, error of the fit, median", 100 * statistics.median(errors), "%"))
        rows.append(Row(f"{kernel}, error of the fit, worst", 100 * max(errors), "%"))
    if not quick:
        FACTORS.write_text(
            json.dumps({"factors": {k: [round(v, 4) for v in f] for k, f in fitted.items()}}, indent=1) + "\n"
        )
    for isa, cases_of in trials.items():
        lost = []
        for cases in cases_of:
            taken = min(cases, key=lambda case: _expected(case, fitted))
            lost.append(counts[id(taken)] / min(counts[id(case)] for case in cases) - 1)
        rows.append(Row(f"{isa}, the kernel chosen is the best", 100 * lost.count(0.0) / len(lost), "%"))
        rows.append(Row(f"{isa}, instructions lost by the choice, worst", 100 * max(lost), "%"))
    return rows


Case = tuple[Call, Work]


def _expected(case: Case, fitted: dict[str, list[float]]) -> float:
    return float(np.dot(case[1].loops(), fitted[case[1].kernel]))


def _fit(loops: NDArray[np.float64], counts: NDArray[np.float64]) -> list[float]:
    """Factors of at least zero with the least squares of relative errors; what would be below is left out, in turn."""
    scaled = loops / counts[:, None]
    used = [i for i in range(loops.shape[1]) if loops[:, i].any()]
    while True:
        found = np.linalg.lstsq(scaled[:, used], np.ones(len(counts)), rcond=None)[0]
        if found.min() >= 0:
            break
        used.pop(int(found.argmin()))
    whole = np.zeros(loops.shape[1])
    whole[used] = found
    return [float(value) for value in whole]


def _trials(rng: np.random.Generator, kernels: tuple[str, ...], number: int) -> list[list[Case]]:
    """The same convolution, with zeros of some kind, on each of the kernels."""
    found = []
    for _ in range(number):
        kept, block = float(rng.choice([0.1, 0.25, 0.4, 0.5, 0.7, 1.0])), BLOCKS[int(rng.integers(len(BLOCKS)))]
        shape = replace(_shape(rng, kernels[-1]), kept=kept, block=block)
        seed = int(rng.integers(1 << 30))
        found.append([_call(np.random.default_rng(seed), kernel, shape) for kernel in kernels])
    return found


def _shape(rng: np.random.Generator, kernel: str) -> Shape:
    """Sizes spread evenly over orders of magnitude, with few enough products to be counted quickly."""
    while True:
        out, channels, width = (int(2 ** rng.uniform(*ends)) for ends in ((3, 8.5), (2.5, 8.5), (0, 5.8)))
        rows, size = max(1, int(width * rng.uniform(0.5, 1.2))), int(rng.choice([1, 1, 3]))
        if kernel.startswith("linear"):
            rows = width = size = 1
        if kernel.startswith("depthwise"):
            channels, size = out, int(rng.choice([3, 5]))
        products = out * (1 if kernel.startswith("depthwise") else channels) * rows * width * size**2
        if products < 2e6:
            break
    kept = float(rng.choice([0.1, 0.25, 0.5, 0.8])) if "x" in kernel else 1.0
    form = kernel.removeprefix("linear_").split("_")[0]
    block = (int(form[0]), int(form[2])) if "x" in form else (4, 4)
    return Shape(out, channels, rows, width, size, kept, block, bool(rng.random() < 0.8))


def _call(rng: np.random.Generator, kernel: str, shape: Shape) -> tuple[Call, Work]:
    """The call of a kernel on such a convolution, and its work."""
    form, depthwise = kernel.removeprefix("linear_"), kernel.startswith("depthwise")
    block = 8 if "i8mm" in kernel or "c8" in kernel else 4
    weight = _weight(rng, shape, depthwise)
    border = shape.kernel // 2
    x = rng.integers(-128, 128, (shape.channels, shape.rows + 2 * border, shape.width + 2 * border), dtype=np.int8)
    x_zero, y_zero, low, high = -7, 5, -120, 127
    bias = rng.integers(-1000, 1000, shape.out).astype(np.int32)
    acc = _accumulators(x, weight, x_zero, shape, depthwise) + bias[:, None]
    scale = (120 / (np.abs(acc).max(1) + 1)).astype(np.float32)
    q = np.rint(acc.astype(np.float32) * scale[:, None]).astype(np.int64) + y_zero
    taps = pack.tap_offsets((shape.kernel,) * 2, (1, 1), (1, 1), x.shape[1:], block)
    x_row, x_block = x.shape[2] * block, x.shape[1] * x.shape[2] * block
    y_row, y_block = shape.width * block, shape.rows * shape.width * block
    empty = np.zeros(0, np.int32)
    kept = 0
    arrays: tuple[Array, ...]
    if depthwise:
        arrays = pack.pack_depthwise(weight, block), empty, empty
    elif form in pack.DENSE:
        arrays = pack.pack_dense(weight, pack.DENSE[form]), empty, empty
    else:
        sparse = pack.pack_sparse(weight, pack.SPARSE[form.split("_")[0]], taps, x_block)
        arrays, kept = (sparse.stream, sparse.group_starts, sparse.block_counts), int(sparse.block_counts.sum())
    folded = pack.fold_bias(bias, weight, x_zero, magic=shape.magic)
    given = np.concatenate([_blocked(x.reshape(shape.channels, -1), block), np.zeros(pack.SLACK, np.int8)])
    blocks = -(-shape.channels // block)
    sizes = (shape.out, shape.rows, shape.width, blocks, len(taps), x_block, x_row, y_block, y_row)
    groups = -(-shape.out // pack.GROUP)
    integers = (*sizes, y_zero, low, high, int(shape.magic), 0, shape.rows * shape.width, 0, groups, 0, 0)
    expected = _blocked(np.clip(q, low, high).astype(np.int8), block, y_zero)
    buffers = taps, *arrays, folded, pack.pad_channels(scale), given, np.zeros_like(expected)
    flat = shape.kernel == 1 or shape.rows == 1
    work = Work(
        kernel, shape.out, blocks, len(taps), shape.rows, shape.width, kept, flat=flat, magic=shape.magic
    )  # fmt: skip
    return Call(ENTRIES.index(kernel), integers, buffers, expected), work


def _weight(rng: np.random.Generator, shape: Shape, depthwise: bool) -> NDArray[np.int8]:
    sizes = (shape.out, 1 if depthwise else shape.channels, shape.kernel, shape.kernel)
    weight = rng.integers(1, 128, sizes) * rng.choice([-1, 1], sizes)
    if not depthwise:
        rows, columns = shape.block
        keep = rng.random((-(-shape.out // rows), -(-shape.channels // columns), *sizes[2:])) < shape.kept
        weight *= keep.repeat(rows, 0)[: shape.out].repeat(columns, 1)[:, : shape.channels]
    found: NDArray[np.int8] = weight.astype(np.int8)
    return found


def _accumulators(
    x: NDArray[np.int8], weight: NDArray[np.int8], zero: int, shape: Shape, depthwise: bool
) -> NDArray[np.int64]:
    """In float64, which holds these sums exactly."""
    acc = np.zeros((shape.out, shape.rows * shape.width))
    centred = x.astype(np.float64) - zero
    for i, j in itertools.product(range(shape.kernel), repeat=2):
        window = centred[:, i : i + shape.rows, j : j + shape.width].reshape(shape.channels, -1)
        tap = weight[:, :, i, j].astype(np.float64)
        acc += tap * window if depthwise else tap @ window
    found: NDArray[np.int64] = acc.astype(np.int64)
    return found


def _blocked(x: NDArray[np.int8], block: int, rest: int = 0) -> NDArray[np.int8]:
    """[channels, pixels] to [blocks, pixels, block]; `rest` fills up the last block."""
    padded = np.full((pack.round_up(len(x), block), x.shape[1]), rest, np.int8)
    padded[: len(x)] = x
    flat: NDArray[np.int8] = np.ascontiguousarray(padded.reshape(len(padded) // block, block, -1).transpose(0, 2, 1))
    return flat.reshape(-1)
