"""Copies, borders, phases and layouts put every byte where numpy puts it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tersor.backends.neon import pack
from tersor.backends.neon.layout import Border, Layout
from tersor.backends.neon.nests import Nest, nests
from tersor.backends.neon.views import runs

from .harness import UNTOUCHED, Array, Case, Int8, run

BORDER, PHASES, TO_BLOCKS, FROM_BLOCKS, LOOPS, RUNS, FILL = range(7)
NO_PLANES = (0,) * 9
SHARES = ((0, 1), (0, 3), (2, 3))


def case(
    name: str,
    planes: tuple[int, ...],
    extra: tuple[int, ...],
    a: Int8,
    before: Int8,
    after: Int8,
    table: Array | None = None,
) -> Case:
    numbers = np.zeros(0, np.int32) if table is None else table.astype("<i4")
    buffers = (numbers.tobytes(), np.ascontiguousarray(a).tobytes(), before.tobytes())
    return Case(name, "movement", (*planes, *extra), buffers, after.reshape(-1))


def untouched(*shape: int) -> Int8:
    return np.full(shape, UNTOUCHED, np.int8)


def span(count: int, share: tuple[int, int]) -> slice:
    part, parts = share
    return slice(count * part // parts, count * (part + 1) // parts)


def borders(block: int) -> Iterator[Case]:
    for top, bottom, left, right in ((1, 1, 1, 1), (0, 2, 3, 0), (0, 0, 0, 0), (2, 0, 0, 1), (9, 0, 9, 9)):
        before = untouched(2, 3 + top + bottom, 4 + left + right, block)
        after = np.full_like(before, -7)
        after[:, top : top + 3, left : left + 4] = UNTOUCHED
        row = before.shape[2] * block
        planes = (2, 3, 4 * block, 0, 0, 0, 0, before.shape[1] * row, row)
        extra = (BORDER, top, bottom, left, right, block, -7)
        yield case(f"border {top} {left}", planes, extra, untouched(0), before, after)


def fills() -> Iterator[Case]:
    for size in (4, 8, 60, 64, 68, 200):
        after = untouched(size + 8)
        after[:size] = -7
        yield case(f"fill {size}", NO_PLANES, (FILL, size, -7), untouched(0), untouched(size + 8), after)


def phases(rng: np.random.Generator, block: int) -> Iterator[Case]:
    """Every stride-th pixel, of the phases that are wanted, in the order wanted."""
    odd = ((5, 17, 2, 2), (7, 5, 3, 2), (1, 1, 2, 2), (4, 4, 1, 3), (9, 33, 2, 2))
    even = ((6, 8, 2, 2), (10, 10, 2, 2), (6, 6, 2, 2), (9, 4, 2, 2), (8, 2, 2, 2), (5, 38, 2, 2), (16, 16, 8, 8))
    sizes = (*odd, *even)
    for (height, width, sy, sx), share in itertools.product(sizes, SHARES):
        present = [p for p in range(sy * sx) if p // sx < height and p % sx < width]
        for wanted in (present, present[:1], present[::2], present[1:]):
            x = rng.integers(-128, 128, (3, height, width, block), dtype=np.int8)
            rows, columns = pack.phase_plane((height, width), (sy, sx))
            after = untouched(3, len(wanted), rows, columns, block)
            for i, phase in enumerate(wanted):
                part = x[:, phase // sx :: sy, phase % sx :: sx]
                mine = span(3, share)
                after[mine, i, : part.shape[1], : part.shape[2]] = part[mine]
            given = np.concatenate([x.reshape(-1), untouched(pack.SLACK)])
            planes = (3, height, width * block, height * width * block, width * block, 0, 0, 0, 0)
            extra = (PHASES, block, sy, sx, *share)
            name = f"phases {height}x{width} {sy}x{sx} {wanted}"
            yield case(name, planes, extra, given, untouched(*after.shape), after, np.array(wanted, np.int32))


def copies(rng: np.random.Generator) -> Iterator[Case]:
    """Permuted and cut tensors between layouts: the loops that `nests` finds, or runs where it finds none."""
    x = rng.integers(-128, 128, (9, 6, 5), dtype=np.int8)
    plain = Layout(9, 6, 5, 1).offsets()
    for block, order, cut in itertools.product((1, 4, 8), ((0, 1, 2), (2, 1, 0), (1, 0, 2)), (9, 6, 1)):
        value, source = (array[:cut].transpose(order) for array in (x, plain))
        channels, rows, width = value.shape
        layout = Layout(channels, rows, width, block, Border(1, 0, 0, 2))
        target = layout.offsets()
        after = untouched(layout.size)
        after[target] = value
        found = nests(target, source)
        assert found is not None
        table = runs(target, source)
        triples = np.array([(run.target, run.source, run.length) for run in table])
        name = f"block {block}, order {order}, {cut} channels"
        yield case(f"runs, {name}", NO_PLANES, (RUNS, len(table), 0, 1), x, untouched(layout.size), after, triples)
        if len(found) == 1:
            yield from one_nest(name, found[0], x, layout.size)


def one_nest(name: str, nest: Nest, x: Int8, size: int) -> Iterator[Case]:
    loops = [(loop.count, loop.source, loop.target) for loop in nest.loops] or [(1, 0, 0)]
    flat = x.reshape(-1)[nest.source :]
    for share in SHARES:
        after = untouched(size - nest.target)
        for at in itertools.product(
            range(*span(loops[0][0], share).indices(loops[0][0])), *(range(n) for n, *_ in loops[1:])
        ):
            begin = sum(i * loop[1] for i, loop in zip(at, loops, strict=True))
            to = sum(i * loop[2] for i, loop in zip(at, loops, strict=True))
            after[to : to + nest.length] = flat[begin : begin + nest.length]
        extra = (LOOPS, len(loops), nest.length, *share)
        yield case(f"loops, {name}", NO_PLANES, extra, flat, untouched(len(after)), after, np.array(loops))


def layouts(rng: np.random.Generator, block: int) -> Iterator[Case]:
    for channels, width, gap in itertools.product((1, 3, 4, 8, 9, 17), (5, 8, 14, 16, 33), (0, 2)):
        x = rng.integers(-128, 128, (channels, 3, width), dtype=np.int8)
        blocks = -(-channels // block)
        filled = np.full((blocks * block, 3, width), 11, np.int8)
        filled[:channels] = x
        wanted = np.ascontiguousarray(filled.reshape(blocks, block, 3, width).transpose(0, 2, 3, 1))
        whole = untouched(blocks, 3, width + gap, block)
        whole[:, :, :width] = wanted
        row, plane = (width + gap) * block, 3 * (width + gap) * block
        planes = (blocks, 3, width, 3 * width, width, 0, 0, plane, row)
        yield case(f"to {channels}", planes, (TO_BLOCKS, block, channels, 11, 0, 1), x, untouched(*whole.shape), whole)
        planes = (blocks, 3, width, plane, row, 0, 0, 3 * width, width)
        yield case(f"from {channels}", planes, (FROM_BLOCKS, block, channels, 0, 1), whole, untouched(*x.shape), x)
        for share in SHARES[1:]:
            part = untouched(*x.shape)
            mine = span(blocks, share)
            part[mine.start * block : mine.stop * block] = x[mine.start * block : mine.stop * block]
            extra = (FROM_BLOCKS, block, channels, *share)
            yield case(f"from {channels}, {share}", planes, extra, whole, untouched(*x.shape), part)


def all_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    return [
        *copies(rng),
        *fills(),
        *(c for b in (4, 8) for make in (borders(b), phases(rng, b), layouts(rng, b)) for c in make),
    ]


@pytest.mark.emulated
def test_emulated(arm_program: Path, emulator: str) -> None:
    run([emulator, "-cpu", "cortex-a53", arm_program], all_cases())


@pytest.mark.emulated
def test_portable(host_program: Path) -> None:
    run([host_program], all_cases())


def test_what_has_no_order_is_no_nest() -> None:
    shuffled = np.random.default_rng(0).permutation(24).reshape(2, 3, 4)
    assert nests(np.arange(24).reshape(2, 3, 4), shuffled) is None
