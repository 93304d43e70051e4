"""Instructions that kernels take, by what they were counted to take under emulation.

A kernel walks tiles of a fixed number of pixels. What it takes is a sum over its loops: so many instructions each time
that a loop's body runs. `Work.loops` counts the bodies; `python -m benchmarks neon_costs` counts instructions on a grid
of shapes, finds the factors by least squares, and writes them to counted.json beside this file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from .pack import GROUP, round_up

FACTORS = Path(__file__).parent / "counted.json"

TILES: dict[str, tuple[tuple[int, int], ...]] = {
    "dense_neon": ((5, 8), (1, 4)),
    "dense_dotprod": ((9, 12), (5, 8), (1, 4)),
    "dense_i8mm": ((5, 8), (1, 4)),
    "1x4_neon": ((32, 32), (9, 16), (1, 4)),
    "1x4_dotprod": ((64, 64), (32, 32), (9, 16), (1, 4)),
    "2x4_dotprod": ((48, 48), (9, 16), (1, 4)),
    "4x4_dotprod": ((13, 24), (5, 12), (1, 4)),
    "2x8_i8mm": ((32, 32), (1, 8)),
    "4x8_i8mm": ((24, 24), (5, 8), (1, 4)),
    "linear_dense_neon": ((1, 1),),
    "linear_dense_dotprod": ((1, 1),),
    "linear_4x4_dotprod": ((1, 1),),
    "depthwise_c4_neon": ((9, 16), (1, 4)),
    "depthwise_c8_neon": ((5, 8), (1, 2)),
}
"""By kernel, as its C file has them: from how many pixels that are left on a tile is taken, and its pixels."""


@dataclass(frozen=True)
class Work:
    """One call of a kernel, named as in `TILES`.

    blocks: of input channels; kept: blocks of weights that are not all zero, of a sparse kernel. flat: whether all rows
    are one run of pixels. magic: the cheaper requantization.
    """

    kernel: str
    out: int
    blocks: int
    taps: int
    rows: int
    width: int
    kept: int = 0
    flat: bool = True
    magic: bool = True

    def loops(self) -> list[float]:
        """How often each loop's body runs, the innermost loop of each size of tile first."""
        runs, length = (1, self.rows * self.width) if self.flat else (self.rows, self.width)
        tiles, cut = _tiles(self.kernel, length)
        form = self.kernel.removeprefix("linear_")
        groups = round_up(self.out, GROUP) // GROUP
        found: list[float] = []
        for count in tiles:
            found += [runs * count * inner for inner in self._inner(form)]
        units = self._inner(form)[-1]
        pixels = sum(count * size for count, (_, size) in zip(tiles, TILES[self.kernel], strict=True))
        exact = 0.0 if self.magic else runs * pixels * units
        return [*found, exact, runs * cut * groups, runs * groups, groups, 1.0]

    def _inner(self, form: str) -> list[float]:
        """Of one tile: the steps over the input, the taps, and the rows of tiles that all channels make."""
        groups = round_up(self.out, GROUP) // GROUP
        if form.startswith("depthwise"):
            block = 8 if "c8" in form else 4
            channels = round_up(self.out, block) // block
            return [channels * self.taps, channels]
        if form.startswith("dense"):
            units = groups if form.endswith("i8mm") else round_up(self.out, 4) / 8
            return [units * self.taps * self.blocks, units * self.taps, units]
        return [self.kept, groups * GROUP / int(form[0])]

    def instructions(self) -> float:
        """What it takes."""
        return sum(count * factor for count, factor in zip(self.loops(), factors()[self.kernel], strict=True))


@functools.lru_cache(maxsize=4096)
def _tiles(kernel: str, pixels: int) -> tuple[tuple[int, ...], int]:
    """How many tiles of each size a run of pixels takes, and whether the last is cut."""
    counts = []
    cut = 0
    for least, size in TILES[kernel]:
        count = 0
        if pixels >= least:
            count, pixels = divmod(pixels, size)
            if pixels >= least:
                count, pixels, cut = count + 1, 0, 1
        counts.append(count)
    return tuple(counts), cut


@functools.cache
def factors() -> dict[str, tuple[float, ...]]:
    """Instructions of each loop's body, by kernel, in the order of `Work.loops`."""
    read = json.loads(FACTORS.read_text())
    return {kernel: tuple(values) for kernel, values in read["factors"].items()}
