"""Cases for the kernels: what goes in, and what an independent computation in int64 and float32 says comes out."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Int8 = NDArray[np.int8]

UNTOUCHED = 0x5A
"""What an output holds before the kernel runs; bytes that it must not write still hold it afterwards."""

KERNELS = (
    "dense_neon",
    "dense_dotprod",
    "dense_i8mm",
    "1x4_neon",
    "1x4_dotprod",
    "2x4_dotprod",
    "4x4_dotprod",
    "2x8_i8mm",
    "4x8_i8mm",
    "linear_dense_neon",
    "linear_dense_dotprod",
    "linear_4x4_dotprod",
    "depthwise_c4_neon",
    "depthwise_c8_neon",
    "max_pool",
    "average_pool",
    "global_pool",
    "add",
    "mul",
    "lookup",
    "movement",
    "quantize",
    "dequantize",
)
"""In the order of the table in run_cases.c."""


@dataclass(frozen=True)
class Case:
    """One call of a kernel: `buffers[-1]` is written, and has to hold `expected` afterwards."""

    name: str
    kernel: str
    integers: tuple[int, ...]
    buffers: tuple[bytes, ...]
    expected: Int8

    def encode(self) -> bytes:
        """What run_cases.c reads."""
        head = [KERNELS.index(self.kernel), len(self.integers), *self.integers, len(self.buffers)]
        parts = [np.array(head, "<i4").tobytes()]
        for buffer in self.buffers:
            parts += [np.array(len(buffer), "<i4").tobytes(), buffer]
        return b"".join(parts)


def run(command: Sequence[str | Path], cases: Sequence[Case]) -> None:
    """Run all cases in one process and compare every byte."""
    given = b"".join(case.encode() for case in cases)
    result = subprocess.run([*map(str, command)], input=given, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    wrong, at = [], 0
    for case in cases:
        found = np.frombuffer(result.stdout, np.int8, case.expected.size, at)
        at += case.expected.size
        differ = np.flatnonzero(found != case.expected)
        if len(differ):
            i = differ[0]
            wrong.append(
                f"{case.kernel} {case.name}: {len(differ)} bytes of {found.size} differ, first at {i}:"
                f" {found[i]} for {case.expected[i]}"
            )
    assert at == len(result.stdout)
    assert not wrong, "\n".join(wrong[:20])


def requantize(acc: Array, scale: Array, zero_point: int, low: int, high: int) -> Int8:
    """The definition, over the last axis' channels: float32 product, round half to even."""
    with np.errstate(over="ignore"):
        product = acc.astype(np.float32) * scale.astype(np.float32)
    rounded = np.rint(product).astype(np.float64) + zero_point
    return np.clip(rounded, low, high).astype(np.int8)


def to_blocked(x: Int8, block: int, rng: np.random.Generator) -> Int8:
    """`[C, H, W]` -> `[ceil(C / block), H, W, block]`; channels that fill up hold anything."""
    channels, height, width = x.shape
    blocks = -(-channels // block)
    whole = rng.integers(-128, 128, (blocks * block, height, width), dtype=np.int8)
    whole[:channels] = x
    return np.ascontiguousarray(whole.reshape(blocks, block, height, width).transpose(0, 2, 3, 1))
