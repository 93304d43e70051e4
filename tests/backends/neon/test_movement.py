"""Copies, borders, phases and layouts put every byte where numpy puts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tersor.backends.neon import pack

from .harness import UNTOUCHED, Case, Int8, run, to_blocked

COPY, CHANNELS, BORDER, PHASES, TO_BLOCKS, FROM_BLOCKS = range(6)


def case(name: str, planes: tuple[int, ...], extra: tuple[int, ...], a: Int8, before: Int8, after: Int8) -> Case:
    buffers = (np.ascontiguousarray(a).tobytes(), before.tobytes())
    return Case(name, "movement", (*planes, *extra), buffers, after.reshape(-1))


def untouched(*shape: int) -> Int8:
    return np.full(shape, UNTOUCHED, np.int8)


def copies(rng: np.random.Generator, block: int) -> Iterator[Case]:
    """Two tensors into one, by channels: whole blocks, and ones that begin inside a block."""
    x = rng.integers(-128, 128, (3, 4, 5, block), dtype=np.int8)
    before = untouched(6, 6, 7, block)
    after = before.copy()
    after[2:5, 1:5, 1:6] = x
    row, y_row = 5 * block, 7 * block
    at = 2 * 6 * y_row + y_row + block
    planes = (3, 4, row, 4 * row, row, 0, row, 6 * y_row, y_row)
    yield case("copy", planes, (COPY, 0, 12), x, before.reshape(-1)[at:], after.reshape(-1)[at:])
    part = before.copy()
    part[2:5, 1:5, 1:6].reshape(12, -1)[:] = UNTOUCHED
    rows = part[2:5, 1:5, 1:6]
    rows[0, 3], rows[1, 0] = x[0, 3], x[1, 0]
    yield case("copy part", planes, (COPY, 3, 5), x, before.reshape(-1)[at:], part.reshape(-1)[at:])
    for channels, begin, to in ((3, 0, 2), (2 * block, 1, 3), (1, block - 1, block)):
        after = before.copy().transpose(0, 3, 1, 2).reshape(6 * block, 6, 7)
        plain = x.transpose(0, 3, 1, 2).reshape(3 * block, 4, 5)
        after[to : to + channels, :4, :5] = plain[begin : begin + channels]
        wanted = np.ascontiguousarray(after.reshape(6, block, 6, 7).transpose(0, 2, 3, 1))
        planes = (0, 4, row, 4 * row, row, 0, 0, 6 * y_row, y_row)
        yield case(f"{channels} channels", planes, (CHANNELS, block, channels, begin, to), x, before, wanted)


def borders(block: int) -> Iterator[Case]:
    for top, bottom, left, right in ((1, 1, 1, 1), (0, 2, 3, 0), (0, 0, 0, 0)):
        before = untouched(2, 3 + top + bottom, 4 + left + right, block)
        after = np.full_like(before, -7)
        after[:, top : top + 3, left : left + 4] = UNTOUCHED
        row = before.shape[2] * block
        planes = (2, 3, 4 * block, 0, 0, 0, 0, before.shape[1] * row, row)
        extra = (BORDER, top, bottom, left, right, block, -7)
        yield case(f"border {top} {left}", planes, extra, untouched(0), before, after)


def phases(rng: np.random.Generator, block: int) -> Iterator[Case]:
    for height, width, sy, sx in ((6, 8, 2, 2), (5, 7, 2, 2), (7, 5, 3, 2), (1, 1, 2, 2), (4, 4, 1, 3)):
        x = rng.integers(-128, 128, (3, height, width, block), dtype=np.int8)
        rows, columns = pack.phase_plane((height, width), (sy, sx))
        padded = np.full((3, rows * sy, columns * sx, block), 9, np.int8)
        padded[:, :height, :width] = x
        split = padded.reshape(3, rows, sy, columns, sx, block).transpose(0, 2, 4, 1, 3, 5)
        after = untouched(*split.shape)
        after[1:3] = split[1:3]
        row, y_block = width * block, sy * sx * rows * columns * block
        planes = (3, height, row, height * row, row, 0, 0, y_block, 0)
        yield case(f"phases {height} {sy}", planes, (PHASES, block, sy, sx, 9, 1, 3), x, untouched(*split.shape), after)


def layouts(rng: np.random.Generator, block: int) -> Iterator[Case]:
    for channels in (1, 3, 4, 8, 9, 17):
        x = rng.integers(-128, 128, (channels, 3, 5), dtype=np.int8)
        blocks = -(-channels // block)
        filled = np.full((blocks * block, 3, 5), 11, np.int8)
        filled[:channels] = x
        wanted = to_blocked(filled, block, rng)
        row = 5 * block
        planes = (blocks, 3, 5, 15, 5, 0, 0, 3 * row, row)
        yield case(f"to {channels}", planes, (TO_BLOCKS, block, channels, 11), x, untouched(*wanted.shape), wanted)
        planes = (blocks, 3, 5, 3 * row, row, 0, 0, 15, 5)
        yield case(f"from {channels}", planes, (FROM_BLOCKS, block, channels), wanted, untouched(*x.shape), x)


def all_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    return [c for b in (4, 8) for make in (copies(rng, b), borders(b), phases(rng, b), layouts(rng, b)) for c in make]


@pytest.mark.emulated
def test_emulated(arm_program: Path, emulator: str) -> None:
    run([emulator, "-cpu", "cortex-a53", arm_program], all_cases())


@pytest.mark.emulated
def test_portable(host_program: Path) -> None:
    run([host_program], all_cases())
