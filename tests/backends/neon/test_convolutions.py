"""The convolution kernels give the bits of the definition, on every instruction set and in portable C."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from .convolutions import Numbers, Shape, conv_case, random_numbers
from .harness import KERNELS, Case, run

CONVOLUTIONS, LINEAR, DEPTHWISE = KERNELS[:9], KERNELS[9:12], KERNELS[12:14]
CPUS = {"cortex-a53": ("neon",), "cortex-a76": ("neon", "dotprod"), "max": ("neon", "dotprod", "i8mm")}


def sizes() -> Iterator[Shape]:
    """Every number of pixels to 49 and of channels to 33, and what makes the planes differ."""
    for n in range(1, 50):
        out, channels = 1 + (n * 7) % 33, 1 + (n * 5) % 33
        yield Shape(out, channels, 1, n, density=0.5 if n % 2 else 1.0, border=n % 3 % 2)
        yield Shape(1 + n % 33, 1 + (n * 11) % 33, 7, 7, density=0.3, part=True)
    yield Shape(17, 9, 6, 7, (3, 3), padding=1, border=1)
    yield Shape(12, 16, 9, 11, (3, 3), (2, 2), padding=1, density=0.5)
    yield Shape(9, 3, 13, 12, (3, 2), (2, 3), (2, 1), padding=2, border=2)
    yield Shape(4, 12, 9, 9, (3, 3), dilation=(3, 2), padding=3, density=0.4)
    yield Shape(20, 20, 1, 50, (1, 5), padding=2, part=True)
    yield Shape(16, 64, 10, 10, density=0.1)
    yield Shape(8, 8, 10, 12, density=0.0)
    yield Shape(24, 40, 14, 14, density=0.5)


def linear_sizes() -> Iterator[Shape]:
    for n in range(1, 50):
        yield Shape(n, 1 + (n * 13) % 67, 1, 1, density=0.6 if n % 2 else 1.0, part=n % 3 == 0)
    yield Shape(40, 256, 1, 1, density=0.1)


def depthwise_sizes() -> Iterator[Shape]:
    for n in range(1, 50):
        channels = 1 + (n * 7) % 33
        yield Shape(channels, channels, 3, n, (3, 3), padding=1, border=n % 2, depthwise=True, part=n % 3 == 0)
    for channels in (3, 8, 20):
        yield Shape(channels, channels, 9, 7, (3, 3), (2, 2), padding=1, depthwise=True)
        yield Shape(channels, channels, 9, 12, (5, 2), dilation=(1, 2), padding=2, depthwise=True)
        yield Shape(channels, channels, 5, 6, (1, 1), depthwise=True)


def sizes_of(kernel: str) -> Iterator[Shape]:
    return linear_sizes() if kernel in LINEAR else depthwise_sizes() if kernel in DEPTHWISE else sizes()


def random_cases(kernel: str) -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for number, shape in enumerate(sizes_of(kernel)):
        magic = number % 2 == 0
        yield conv_case(rng, kernel, shape, random_numbers(rng, shape, magic), magic)


def extreme_cases(kernel: str) -> Iterator[Case]:
    """The greatest values of every sign: two products just fit 16 bits, and no accumulator is lost."""
    rng = np.random.default_rng(2)
    depthwise, linear = kernel in DEPTHWISE, kernel in LINEAR
    shape = Shape(8, 8, 2, 9, (3, 3), padding=1, depthwise=True) if depthwise else Shape(8, 32, 2, 9, (3, 3), padding=1)
    shape = Shape(8, 256, 1, 1) if linear else shape
    for x, w, zero in [(-128, 127, 127), (-128, -127, -128), (127, -127, -128), (127, 127, 127), (-128, 127, 0)]:
        numbers = Numbers(
            x=np.full((shape.channels, shape.height, shape.width), x, np.int8),
            weight=np.full((8, 1 if depthwise else shape.channels, *shape.kernel), w, np.int8),
            bias=np.arange(8) - 4,
            scale=np.array([1e-7, 1e-5, 2.5e-5, 1e-4, 1e-3, 1.0, 1e4, 1e30], np.float32),
            x_zero=zero,
            y_zero=3,
        )
        yield conv_case(rng, kernel, shape, numbers, magic=False)


def products_at_ties(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and accumulators whose product is a tie only after it is rounded to float32.

    Half to even of the rounded product differs from that of the exact one, which a fused multiply-add rounds.
    """
    found: list[tuple[np.float32, int]] = []
    while len(found) < count:
        scale = np.float32(rng.uniform(2.0**-11, 2.0**-7))
        ties = np.arange(-127, 128) + 0.5
        acc = np.rint(ties / float(scale))
        exact = acc * float(scale)  # 24 by 22 bits: exact in float64
        rounded = (acc.astype(np.float32) * scale).astype(np.float64)
        differ = (rounded == ties) & (np.rint(exact) != np.rint(rounded)) & (np.abs(acc) < 2**21)
        found += [(scale, int(a)) for a in acc[differ]]
    return np.array([s for s, _ in found[:count]], np.float32), np.array([a for _, a in found[:count]])


def threshold_cases(kernel: str) -> Iterator[Case]:
    """Accumulators at, just below and just above what the next integer needs, with even and odd zero points."""
    rng = np.random.default_rng(3)
    for y_zero in (0, -3, 7, 127, -128):
        scale, acc = products_at_ties(rng, 16)
        exact = np.float32(2.0 ** -rng.integers(1, 10, 16))  # powers of two: the product itself is a tie
        scale = np.concatenate([scale, exact])
        acc = np.concatenate([acc, np.rint((rng.integers(-150, 150, 16) + 0.5) / exact.astype(np.float64)).astype(int)])
        yield from _at_thresholds(rng, kernel, scale, acc, y_zero)


def _at_thresholds(
    rng: np.random.Generator, kernel: str, scale: np.ndarray, acc: np.ndarray, y_zero: int
) -> Iterator[Case]:
    """An input that counts -2, -1, 0, 1, 2 from pixel to pixel, and a bias that is the accumulator."""
    depthwise, pixels = kernel in DEPTHWISE, 1 if kernel in LINEAR else 25
    channels = len(acc) if depthwise else 4
    x = np.zeros((channels, 1, pixels), np.int8)
    x[: channels if depthwise else 1, 0] = (np.arange(pixels) + pixels // 2) % 5 - 2
    weight = np.zeros((len(acc), 1 if depthwise else channels, 1, 1), np.int8)
    weight[:, 0] = 1
    shape = Shape(len(acc), channels, 1, pixels, depthwise=depthwise)
    shifts = (-1, 0, 1) if pixels == 1 else (0,)
    for shift in shifts:
        numbers = Numbers(x, weight, acc + shift - int(x[0, 0, 0]) * (pixels == 1), scale, 0, y_zero)
        for magic in (False, True):
            yield conv_case(rng, kernel, shape, numbers, magic)
            yield conv_case(rng, kernel, shape, replace(numbers, low=y_zero, high=min(127, y_zero + 60)), magic)


def all_cases(kernels: list[str]) -> list[Case]:
    makers = (random_cases, extreme_cases, threshold_cases)
    return [case for kernel in kernels for make in makers for case in make(kernel)]


@pytest.mark.emulated
@pytest.mark.parametrize("cpu", CPUS)
def test_neon_kernels_give_the_bits_of_the_definition(cpu: str, arm_program: Path, emulator: str) -> None:
    # Each kernel on the least processor that has it, and all of them on the one with everything.
    kernels = [k for k in KERNELS[:14] if k.rsplit("_", 1)[1] in CPUS[cpu]]
    run([emulator, "-cpu", cpu, arm_program], all_cases(kernels))


@pytest.mark.emulated
def test_portable_kernels_give_the_bits_of_the_definition(host_program: Path) -> None:
    run([host_program], all_cases(list(KERNELS[:14])))
