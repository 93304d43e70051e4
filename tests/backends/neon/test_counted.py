"""The cost model: the loops of a kernel by hand, and its error on calls that are counted."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tersor.backends.neon.choice import KERNELS, Plane, choose, work_of
from tersor.backends.neon.counted import TILES, Work, factors

from .conftest import KERNELS as SOURCES
from .conftest import ROOT


def test_loops_are_those_of_the_kernel() -> None:
    """Two rows of 29 pixels on dotprod: tiles of 12, 12 and 8, the last cut; 20 channels are 2 groups and a half."""
    work = Work("dense_dotprod", 20, 3, 9, 2, 29, flat=False)
    tiles = [4, 2, 0]  # in both rows
    expected = [count * body for count in tiles for body in (2.5 * 9 * 3, 2.5 * 9, 2.5)]
    assert work.loops() == [*expected, 0.0, 2 * 3, 2 * 3, 3, 1.0]


def test_tiles_are_those_of_the_sources() -> None:
    text = "\n".join(source.read_text() for source in SOURCES)
    for kernel, tiles in TILES.items():
        if not kernel.startswith(("linear", "depthwise")):
            listed = text[text.index(f"void tersor_conv_{kernel}(") :]
            sizes = listed[listed.index("{{") : listed.index("}};")]
            assert all(f"{{{least}, {size}, " in sizes + "}" for least, size in tiles), kernel


def test_every_kernel_has_its_factors() -> None:
    for kernel in TILES:
        assert len(factors()[kernel]) == len(Work(kernel, 8, 1, 1, 1, 1).loops())
        assert min(factors()[kernel]) >= 0


@pytest.mark.parametrize("isa", sorted(KERNELS))
def test_more_work_never_takes_less(isa: str) -> None:
    weight = np.ones((32, 32, 3, 3), np.int8)
    for name in KERNELS[isa]:
        costs = [work_of(isa, name, weight, Plane(14, width)).instructions() for width in (12, 24, 48)]
        assert costs == sorted(costs), name


def test_a_choice_depends_on_the_zeros() -> None:
    dense = np.ones((64, 64, 1, 1), np.int8)
    sparse = dense * (np.arange(64) % 16 < 4)[:, None, None, None].astype(np.int8)
    assert choose("dotprod", dense).name == "dense"
    assert choose("dotprod", sparse).name == "4x4"


@pytest.mark.emulated
@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "emulator")
def test_the_model_predicts_counts_of_other_shapes() -> None:
    """On shapes that nothing was fitted to, the median error is small, and the kernel taken is near the best."""
    script = (
        "import json, numpy, benchmarks.neon_costs as costs\n"
        "from benchmarks.neon.counting import count\n"
        "rng = numpy.random.default_rng(7)\n"
        "cases = [costs._call(rng, k, costs._shape(rng, k)) for k in costs.ENTRIES for _ in range(6)]\n"
        "print(json.dumps([w.instructions() / n for n, (_, w) in zip(count([c for c, _ in cases]), cases)]))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    errors = sorted(abs(ratio - 1) for ratio in json.loads(result.stdout))
    assert errors[len(errors) // 2] < 0.05
    assert errors[-1] < 0.5
