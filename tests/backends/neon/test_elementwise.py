"""Sums, products, tables and conversions give the bits of their definitions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.backends.neon.fixed_sums import FixedSum, fixed_sum
from tersor.backends.neon.steps import Sum

from .harness import UNTOUCHED, Array, Case, Int8, requantize, run

EVERY = np.arange(-128, 128).astype(np.int8)
CPUS = ("cortex-a53", "max")


def planes(blocks: int, rows: int, size: int, gaps: tuple[int, int, int]) -> tuple[tuple[int, ...], list[Array]]:
    """Three tensors whose rows have gaps: the integers of tersor_planes, and where the rows' bytes are in each."""
    integers = [blocks, rows, size]
    places = []
    for gap in gaps:
        row = size + gap
        block = rows * row + 2 * gap
        integers += [block, row]
        at = np.arange(blocks)[:, None] * block + np.arange(rows) * row
        places.append(at.reshape(-1, 1) + np.arange(size))
    return tuple(integers), places


def place(rng: np.random.Generator, values: Array, at: Array) -> Int8:
    """A tensor that ends with its last byte: behind it is nothing that may be read."""
    whole = rng.integers(-128, 128, int(at.max()) + 1, dtype=np.int8)
    whole[at] = values
    return whole


def sizes() -> Iterator[tuple[int, int, int, tuple[int, int, int]]]:
    yield from ((1, 1, n, (0, 0, 0)) for n in range(1, 50))
    yield (3, 5, 28, (0, 0, 0))
    yield (2, 4, 20, (8, 0, 4))
    yield (2, 3, 36, (0, 16, 0))


def binary_case(
    rng: np.random.Generator, name: str, a: Int8, b: Int8, sizes: tuple[int, int, int, tuple[int, int, int]]
) -> Case:
    """`a` and `b` are what the rows hold."""
    integers, (at_a, at_b, at_y) = planes(*sizes)
    za, zb, zy = (int(z) for z in rng.integers(-128, 128, 3))
    low, high = int(rng.integers(-128, -100)), int(rng.integers(100, 128))
    sa, sb, sy = (np.float32(s) for s in rng.uniform(0.01, 0.1, 3))
    kind = int(rng.integers(0, 3))
    if kind == 1:  # half of the sums and many products are ties
        sa, sb, sy = np.float32(0.5), np.float32(0.25), np.float32(1.0)
    if kind == 2:  # half of the sums are ties but for the rounding of each step
        sa, sb = np.float32(0.5) * sy, np.float32(1.5) * sy
    multiplier = np.float32(sa * sb / sy)
    rows = int(integers[0] * integers[1])
    begin, end = (0, rows) if rows < 3 else (1, rows - 1)
    if name == "add":
        both = (a.astype(np.int32) - za).astype(np.float32) * sa + (b.astype(np.int32) - zb).astype(np.float32) * sb
        q = np.clip(np.rint(both / sy).astype(np.float64) + zy, low, high).astype(np.int8)
    else:
        q = requantize((a.astype(np.int64) - za) * (b.astype(np.int64) - zb), multiplier, zy, low, high)
    before = np.full(int(at_y.max()) + 1, UNTOUCHED, np.int8)
    after = before.copy()
    after[at_y[begin:end]] = q.reshape(rows, -1)[begin:end]
    floats = np.array([sa, sb, sy, multiplier], np.float32)
    arrays = (floats, place(rng, a.reshape(rows, -1), at_a), place(rng, b.reshape(rows, -1), at_b), before)
    fixed = proven((sa, sb, sy), (za, zb, zy), low, high) if name == "add" and kind == 0 else None
    factors = (0, 0, 0) if fixed is None else (fixed.a_factor, fixed.b_factor, fixed.shift)
    given = (*integers, za, zb, zy, low, high, begin, end, *factors)
    return Case(f"{name} {sizes}", name, given, tuple(x.tobytes() for x in arrays), after)


def proven(scales: tuple[Any, ...], zero_points: tuple[int, int, int], low: int, high: int) -> FixedSum | None:
    sa, sb, sy = map(float, scales)
    return fixed_sum(Sum("sum", (), None, (sa, sb, sy), zero_points, low, high))


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5, 7.0, 31.0])
def test_fixed_sums_of_every_size_are_found(ratio: float) -> None:
    """For most scales there are factors; with larger ratios they have fewer bits."""
    rng = np.random.default_rng(int(ratio * 10))
    found = [
        proven(tuple(np.float32(s) for s in (ratio * sa, ratio * sb, 0.03)), (3, -7, 11), -128, 127)
        for sa, sb in rng.uniform(0.008, 0.02, (8, 2))
    ]
    assert sum(fixed is not None for fixed in found) >= (6 if ratio < 4 else 1)
    assert {fixed.shift for fixed in found if fixed is not None} <= {2, 3, 4, 5, 6}


def test_sums_that_are_ties_have_no_fixed_form() -> None:
    assert proven((0.5, 0.25, 1.0), (0, 0, 0), -128, 127) is None


def binary_cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for name in ("add", "mul"):
        for size in sizes():
            count = size[0] * size[1] * size[2]
            a, b = (rng.integers(-128, 128, count, dtype=np.int8) for _ in range(2))
            yield binary_case(rng, name, a, b, size)
        for _ in range(8):  # every pair of inputs
            yield binary_case(rng, name, EVERY.repeat(256), np.tile(EVERY, 256), (1, 1, 65536, (0, 0, 0)))


def lookup_cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for size in [*sizes(), (1, 1, 256, (0, 0, 0))]:
        integers, (at_a, _, at_y) = planes(*size)
        table = rng.integers(-128, 128, 256, dtype=np.int8)
        a = EVERY if at_a.size == 256 else rng.integers(-128, 128, at_a.size, dtype=np.int8)
        before = np.full(int(at_y.max()) + 1, UNTOUCHED, np.int8)
        after = before.copy()
        after[at_y] = table[a.view(np.uint8)].reshape(at_y.shape)
        buffers = (table, place(rng, a.reshape(at_a.shape), at_a), before)
        yield Case(f"{size}", "lookup", (*integers, 0, len(at_a)), tuple(b.tobytes() for b in buffers), after)


def quantize_cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for count in range(1, 50):
        scale = np.float32(0.25 if count % 2 else rng.uniform(0.01, 1))
        zero = int(rng.integers(-128, 128))
        low, high = (-128, 127) if count % 3 else (-100, 90)
        x = (rng.integers(-400, 400, count) / 2).astype(np.float32) * scale  # half of them ties
        extreme = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, -0.0], np.float32)
        x[: min(6, count // 2)] = extreme[: min(6, count // 2)]
        with np.errstate(over="ignore"):
            value = np.rint(np.where(np.isnan(x), -np.inf, x / scale)).astype(np.float64) + zero
        q = np.clip(value, low, high).astype(np.int8)
        buffers = (scale.tobytes(), x.tobytes(), bytes([UNTOUCHED]) * count)
        yield Case(f"{count}", "quantize", (count, zero, low, high), buffers, q)
        back = (q.astype(np.int32) - zero).astype(np.float32) * scale
        buffers = (scale.tobytes(), q.tobytes(), bytes([UNTOUCHED]) * 4 * count)
        yield Case(f"{count}", "dequantize", (count, zero), buffers, back.view(np.int8))


def all_cases() -> list[Case]:
    return [*binary_cases(), *lookup_cases(), *quantize_cases()]


@pytest.mark.emulated
@pytest.mark.parametrize("cpu", CPUS)
def test_neon(cpu: str, arm_program: Path, emulator: str) -> None:
    run([emulator, "-cpu", cpu, arm_program], all_cases())


@pytest.mark.emulated
def test_portable(host_program: Path) -> None:
    run([host_program], all_cases())
