"""Random graphs: the integer stage beside the fake-quantize simulation, and beside ONNX Runtime on the emitted file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.backends.processor import has_vnni
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import Observer
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize

from .lockstep import lockstep
from .random_graphs import EVERY, EXACT, Operator, at_ties, float_program, inputs, quantized

LENGTH = 6
SEEDS = st.integers(0, 2**32)
needs_vnni = pytest.mark.skipif(not has_vnni(), reason="ONNX Runtime saturates on CPUs without VNNI")
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
SLOW = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
NORMS = {"layer_norm": 2, "rms_norm": 2, "group_norm": 2}
"""In steps: the stated error of rows that hardly vary, 2**-8 of the value, beside the rounding of both."""
AT_TIES = {*NORMS, "softmax", "avg_pool2d", "mean", "mul"}
"""Computed another way than floats do, or, as means and products of few steps, at ties: any may be a step off."""


def lowered(seed: int, operators: tuple[Operator, ...]) -> tuple[Program, Program, list[Tensor]]:
    """The simulation, the integer program, and inputs: at random and at ties."""
    program = quantized(float_program(seed, operators, LENGTH), seed)
    return program, LowerToInteger()(program), [inputs(program, seed + 1)[0], at_ties(program, seed + 2)]


def check_against_the_simulation(seed: int) -> None:
    simulated, integer, given_ = lowered(seed, EVERY)
    for x in given_:
        for apart in lockstep(simulated, integer, [x]):
            assert apart.steps <= NORMS.get(apart.operator, 1), apart
            if apart.operator not in AT_TIES:  # else a float32 sum has to land on the other side of a tie
                assert apart.differing <= max(4, apart.values / 50), apart


def check_against_onnx_runtime(seed: int, folder: Path) -> None:
    simulated, integer, given_ = lowered(seed, EXACT)
    artifact = OnnxRuntime(audit=False, threads=1).emit(simulated, folder / f"{seed}")
    for x in given_:
        for ours, theirs in zip(integer(x), artifact.run(x), strict=True):
            assert torch.equal(ours, theirs), f"{int((ours != theirs).sum())} of {ours.numel()} differ"


@QUICK
@given(SEEDS)
def test_every_operator_is_within_a_step_of_the_simulation(seed: int) -> None:
    check_against_the_simulation(seed)


@needs_vnni
@QUICK
@given(seed=SEEDS)
def test_onnx_runtime_gives_the_same_bits(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Convolution, linear, relu and clip, max and global pooling, concat, add, movement."""
    check_against_onnx_runtime(seed, tmp_path_factory.mktemp("graph"))


@pytest.mark.slow
@SLOW
@given(SEEDS)
def test_thousands_of_graphs_are_within_a_step_of_the_simulation(seed: int) -> None:
    check_against_the_simulation(seed)


@pytest.mark.slow
@needs_vnni
@SLOW
@given(seed=SEEDS)
def test_onnx_runtime_gives_the_same_bits_on_thousands(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_against_onnx_runtime(seed, tmp_path_factory.mktemp("graph"))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(SEEDS)
def test_nothing_between_integers_is_float(seed: int) -> None:
    """Only what moves the program's own input and is read by nobody computes floats."""
    _, integer, _ = lowered(seed, EVERY)
    for island in float_islands(integer):
        assert "on no integer grid" in island.reason
        assert all(
            user.op == "output" or user in {i.node for i in float_islands(integer)} for user in island.node.users
        )


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS)
def test_integer_programs_are_saved_and_loaded(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, integer, given_ = lowered(seed, EVERY)
    path = integer.save(tmp_path_factory.mktemp("saved") / "program.tersor")
    again = Program.load(path)
    assert str(again) == str(integer)
    for x in given_:
        assert all(torch.equal(a, b) for a, b in zip(again(x), integer(x), strict=True))


# -- every accumulator, every pair -----------------------------------------------------------------------------------


def every_pair(first: float, second: float) -> Tensor:
    """float32[1, 2, 256, 256]: two channels that take every pair of stored values on grids of these scales."""
    values = torch.arange(-128, 128, dtype=torch.float32)
    return torch.stack(torch.meshgrid(values * first, values * second, indexing="ij")).unsqueeze(0)


def both(program: Program, x: Tensor, folder: Path) -> tuple[Tensor, Tensor]:
    """What the integer program and ONNX Runtime make of an input."""
    artifact = OnnxRuntime(audit=False, threads=1).emit(program, folder)
    return LowerToInteger()(program)(x), artifact.run(x)


@needs_vnni
def test_onnx_runtime_rounds_every_accumulator_alike(tmp_path: Path) -> None:
    """acc = 127 a + b takes every value, so each threshold and each tie of each channel's multiplier is met."""
    net = nn.Conv2d(2, 24, 1)
    with torch.no_grad():
        sizes = torch.exp(torch.linspace(-2, 2, 24)).reshape(-1, 1, 1, 1)
        net.weight.copy_(torch.tensor([127.0, 1.0]).reshape(1, 2, 1, 1) * sizes / 127)
    x = every_pair(1 / 127, 1 / 127)
    program = Quantize(calibration=[x], observer=Observer.MIN_MAX, pair_safe=False)(trace(net, (x,)))
    ours, theirs = both(program, x, tmp_path)
    assert len(ours.unique()) > 200
    assert torch.equal(ours, theirs)


PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "mul": torch.mul}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("ratio", [1.0, 0.37, math.pi])
def test_onnx_runtime_rounds_every_pair_alike(name: str, ratio: float, tmp_path: Path) -> None:
    """All 65,536 pairs of a sum and of a product whose grids were settled."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
            nn.init.constant_(self.a.weight, 1.0)
            nn.init.constant_(self.b.weight, ratio)

        def forward(self, x: Tensor) -> Tensor:
            return PAIRS[name](self.a(x[:, :1]), self.b(x[:, 1:]))

    x = every_pair(0.02, 0.02)
    program = Quantize(calibration=[x], coverage=Coverage.EVERYTHING, correct_bias=False)(trace(Pair(), (x,)))
    ours, theirs = both(program, x, tmp_path)
    assert torch.equal(ours, theirs)
