"""What training simulated is what every target computes: no step lies between, and no value differs by more than a tie.

The field's classic failure is a network that was trained quantized and whose accuracy is gone in the engine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.backends.tensorrt.artifact import TensorRTArtifact
from tersor.ir.errors import LoweringError, MissingDependencyError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.quantization import INT8_SYMMETRIC
from tersor.passes.integer.lower_to_integer import LowerToInteger

from . import networks

X, Y = networks.data(256)
TEST_X, TEST_Y = networks.data(192, seed=2)
SCHEMES = {
    "w8a8": ts.INT8,
    "w8a8 symmetric": INT8_SYMMETRIC,
    "w4a8": ts.W4A8,
    "w4a4": ts.INT4,
    "w2a4": ts.Scheme(ts.QuantType(4), ts.QuantType(2, symmetric=True, granularity=ts.INT8.weight.granularity)),
}


class Residual(nn.Module):
    """Batch norms, a depthwise convolution, a residual, a clamp, and a mean: float32[batch, 1, 4, 4] to [batch, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12))
        self.pointwise = nn.Conv2d(12, 12, 1)
        self.flat = nn.Linear(192, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))
        logits: Tensor = self.head(torch.relu(self.flat(x.flatten(1))))
        return logits


@pytest.fixture(scope="module")
def learned() -> ts.Program:
    """The float program, trained."""
    torch.manual_seed(0)
    program = ts.trace(Residual().eval(), (X[:2],), dynamic={"x": {0: "batch"}})
    options = ts.Training(epochs=12, learning_rate=0.01, progress=False)
    finetune = ts.Finetune(ts.ShuffledBatches(X, Y, size=32), F.cross_entropy, training=options)
    return ts.PassManager([finetune]).run(program).program


@pytest.fixture(scope="module")
def trained(learned: ts.Program) -> dict[str, ts.Program]:
    """It, trained quantized in each scheme."""
    options = ts.Training(epochs=2, learning_rate=2e-3, progress=False)
    return {
        name: ts.PassManager(
            [ts.TrainQuantized(ts.ShuffledBatches(X, Y, size=32), F.cross_entropy, scheme, training=options)]
        )
        .run(learned)
        .program
        for name, scheme in SCHEMES.items()
    }


def agree(program: ts.Program, found: Tensor) -> None:
    """As many right answers, and values that differ in 1 % at most, where a float sum fell to a tie's other side."""
    simulated = program(TEST_X).detach()
    apart = (simulated - found).abs() / simulated.abs().max()
    assert float((apart > 1e-4).float().mean()) <= 0.01
    assert networks.accuracy(found, TEST_Y) == pytest.approx(networks.accuracy(simulated, TEST_Y), abs=1 / len(TEST_X))


def lowered(program: ts.Program, target: str, out: Path) -> Any:
    """The artifact, run; under CI a missing tool is a failure, elsewhere the test is skipped."""
    try:
        artifact = ts.lower(program, target=target, out=out)
        return artifact.run_onnx(TEST_X) if isinstance(artifact, TensorRTArtifact) else artifact.run(TEST_X)
    except MissingDependencyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", SCHEMES)
def test_it_learned_something(trained: dict[str, ts.Program], learned: ts.Program, name: str) -> None:
    """So that what is compared below is not noise."""
    right = networks.accuracy(trained[name](TEST_X), TEST_Y)
    assert right > 0.7
    assert right > networks.accuracy(learned(TEST_X), TEST_Y) - 0.1


@pytest.mark.parametrize("name", SCHEMES)
def test_the_integer_program_is_the_trained_one(trained: dict[str, ts.Program], name: str) -> None:
    integer = ts.PassManager([LowerToInteger()]).run(trained[name]).program
    assert not integer.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    agree(trained[name], integer(TEST_X))


@pytest.mark.parametrize("name", SCHEMES)
def test_onnxruntime(trained: dict[str, ts.Program], name: str, tmp_path: Path) -> None:
    agree(trained[name], lowered(trained[name], "onnxruntime", tmp_path))


@pytest.mark.parametrize("name", ["w8a8", "w2a4"])
def test_hls(trained: dict[str, ts.Program], name: str, tmp_path: Path) -> None:
    agree(trained[name], lowered(trained[name], "hls", tmp_path))


@pytest.mark.emulated
@pytest.mark.parametrize("name", ["w8a8", pytest.param("w4a4", marks=pytest.mark.slow)])
def test_neon(trained: dict[str, ts.Program], name: str, tmp_path: Path) -> None:
    agree(trained[name], lowered(trained[name], "neon", tmp_path))


def test_tensorrt(trained: dict[str, ts.Program], tmp_path: Path) -> None:
    """The graph that its engine is built from; TensorRT's grids have no zero point, so those are trained."""
    agree(trained["w8a8 symmetric"], lowered(trained["w8a8 symmetric"], "tensorrt", tmp_path))


def test_a_target_that_lacks_the_bits_says_so(trained: dict[str, ts.Program], tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"-8\.\.7 on activations"):
        ts.lower(trained["w4a4"], target="tensorrt", out=tmp_path)
