"""Pooling gives the bits of its definition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tersor.backends.neon import pack

from .harness import UNTOUCHED, Array, Case, Int8, requantize, run, to_blocked

CPUS = ("cortex-a53", "max")
MAGIC = pack.MAGIC_BITS


def windows(x: Array, kernel: tuple[int, int], stride: int) -> Array:
    """`[C, H, W]` -> `[C, h, w, taps]`."""
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, ::stride, ::stride]
    return view.reshape(*view.shape[:3], -1)


def phases(x: Int8, block: int, stride: int, rng: np.random.Generator) -> tuple[Int8, int, int]:
    """Blocks of the plane's phases, with slack; bytes of a block and of a row."""
    height, width = pack.phase_plane((x.shape[1], x.shape[2]), (stride, stride))
    plane = np.pad(x, ((0, 0), (0, height * stride - x.shape[1]), (0, width * stride - x.shape[2])))
    blocked = to_blocked(plane, block, rng).reshape(-1, height, stride, width, stride, block)
    split = np.ascontiguousarray(blocked.transpose(0, 2, 4, 1, 3, 5)).reshape(-1)
    slack = rng.integers(-128, 128, pack.SLACK, dtype=np.int8)
    return np.concatenate([split, slack]), stride * stride * height * width * block, width * block


def written(
    rng: np.random.Generator, q: Int8, block: int, border: int, ranges: tuple[int, ...]
) -> tuple[Int8, Int8, int, int]:
    """The output before and after, bytes of a block and of a row."""
    blocks, height, width, _ = q.shape
    before = np.full((blocks, height + 2 * border, width + 2 * border, block), UNTOUCHED, np.int8)
    after = before.copy()
    asked = np.zeros((blocks, height * width, 1), bool)
    asked[ranges[2] : ranges[3], ranges[0] : ranges[1]] = True
    inner = after[:, border : border + height, border : border + width]
    inner[:] = np.where(asked.reshape(blocks, height, width, 1), q, UNTOUCHED)
    row = (width + 2 * border) * block
    return before, after, (height + 2 * border) * row, row


def window_case(
    rng: np.random.Generator, name: str, block: int, size: tuple[int, int, int], kernel: tuple[int, int], stride: int
) -> Case:
    blocks = -(-size[0] // block)
    x = rng.integers(-128, 128, (blocks * block, *size[1:]), dtype=np.int8)
    given, x_block, x_row = phases(x, block, stride, rng)
    taps = pack.tap_offsets(kernel, (1, 1), (stride, stride), size[1:], block)
    seen = windows(x.astype(np.int64), kernel, stride)
    zero, y_zero, magic = int(rng.integers(-128, 128)), int(rng.integers(-128, 128)), int(rng.integers(0, 2))
    scale = np.float32(rng.choice([1 / len(taps), 0.5 / len(taps), rng.uniform(0.3, 2) / len(taps)]))
    if name == "max_pool":
        q = seen.max(-1).astype(np.int8)
    else:
        q = requantize((seen - zero).sum(-1), scale, y_zero, -120, 127)
    q = q.reshape(blocks, block, *q.shape[1:]).transpose(0, 2, 3, 1)
    pixels = q.shape[1] * q.shape[2]
    ranges = (0, pixels, 0, blocks) if rng.random() < 0.6 else (pixels // 3, pixels - pixels // 4, blocks // 2, blocks)
    border = int(rng.integers(0, 2))
    before, after, y_block, y_row = written(rng, q, block, border, ranges)
    bias = -zero * len(taps) + (MAGIC if magic else 0)
    head = (block, q.shape[1], q.shape[2], len(taps), x_block, x_row, y_block, y_row)
    integers = (*head, bias, y_zero, -120, 127, magic, *ranges, 0, border * (y_row + block))
    buffers = (taps.tobytes(), scale.tobytes(), given.tobytes(), before.tobytes())
    return Case(f"{block} {size} {kernel} {stride}", name, integers, buffers, after.reshape(-1))


def global_case(rng: np.random.Generator, block: int, size: tuple[int, int, int], border: int) -> Case:
    blocks = -(-size[0] // block)
    x = rng.integers(-128, 128, (blocks * block, *size[1:]), dtype=np.int8)
    if size[0] % 2:
        x[:] = -128  # the greatest sums
    zero, y_zero = int(rng.integers(-128, 128)), int(rng.integers(-128, 128))
    pixels = size[1] * size[2]
    magic = int(pixels < 4096)
    scale = np.float32(1 / pixels if size[0] % 3 else 0.5 / pixels)
    sums = (x.astype(np.int64) - zero).sum((1, 2)).reshape(blocks, block)
    q = requantize(sums, scale, y_zero, -120, 127)
    padded = np.pad(x, ((0, 0), (border, border), (border, border)))
    row = (size[2] + 2 * border) * block
    # From the first pixel to the last: behind it is nothing that may be read.
    flat = to_blocked(padded, block, rng).reshape(-1)[border * (row + block) :]
    flat = flat[: len(flat) - border * (row + block)]
    before = np.full((blocks, block + 4), UNTOUCHED, np.int8)
    after = before.copy()
    after[:, :block] = q
    head = (block, size[1], size[2], 0, (size[1] + 2 * border) * row, row, block + 4, 0)
    bias = -zero * pixels + (MAGIC if magic else 0)
    integers = (*head, bias, y_zero, -120, 127, magic, 0, 1, 0, blocks, 0, 0)
    buffers = (b"", scale.tobytes(), flat.tobytes(), before.tobytes())
    return Case(f"{block} {size} {border}", "global_pool", integers, buffers, after.reshape(-1))


def all_cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for block in (4, 8):
        for n in range(1, 50):
            for name in ("max_pool", "average_pool"):
                yield window_case(rng, name, block, (1 + n % 13, 3, n + 2), (3, 3), 1)
            yield global_case(rng, block, (1 + n % 9, 1 + n % 4, n), n % 2)
        for name in ("max_pool", "average_pool"):
            yield window_case(rng, name, block, (9, 12, 13), (3, 3), 2)
            yield window_case(rng, name, block, (4, 8, 8), (2, 2), 2)
            yield window_case(rng, name, block, (4, 40, 41), (39, 38), 1)  # more taps than 16 bits hold
        yield global_case(rng, block, (5, 150, 150), 0)
        yield global_case(rng, block, (5, 7, 7), 1)


@pytest.mark.emulated
@pytest.mark.parametrize("cpu", CPUS)
def test_neon(cpu: str, arm_program: Path, emulator: str) -> None:
    run([emulator, "-cpu", cpu, arm_program], list(all_cases()))


@pytest.mark.emulated
def test_portable(host_program: Path) -> None:
    run([host_program], list(all_cases()))
