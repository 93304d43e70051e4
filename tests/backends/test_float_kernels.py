"""Layers left float between integers: ONNX Runtime must not quantize their weights by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.backends.onnxruntime.audit import optimized
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.lowering import lower
from tersor.passes.compare import difference
from tersor.passes.quantization.quantize import Quantize


class Between(nn.Module):
    """A layer named `middle` between two that are quantized."""

    def __init__(self, first: nn.Module, middle: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = first, middle, last

    def forward(self, x: Tensor) -> Tensor:
        read: Tensor = self.last(F.relu(self.middle(self.first(x))))
        return read


class Flat(nn.Module):
    """Rows of pixels, so that a move stands between the grid and the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.layer(x.flatten(1))
        return moved.reshape(-1, 2, 4, 4)


INTEGER = frozenset({"QLinearConv", "QGemm", "MatMulIntegerToFloat"})
IMAGE = (2, 3, 8, 8)
MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "convolution": lambda: (Between(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)), IMAGE),
    "one channel": lambda: (Between(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)), IMAGE),
    "transposed": lambda: (Between(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 4, 3)), IMAGE),
    "linear": lambda: (Between(nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4)), (4, 16)),
    "linear of rows": lambda: (Between(nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4)), (2, 4, 16)),
    "moved": lambda: (Between(nn.Conv2d(3, 2, 3), Flat(nn.Linear(72, 32)), nn.Conv2d(2, 4, 3)), IMAGE),
}


def quantized(name: str) -> Program:
    """With `middle` left float, and weights of its channels that one scale a tensor would spoil."""
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    for key, tensor in model.named_parameters():
        if "middle" in key and "weight" in key:
            tensor.data *= torch.logspace(-3, 0, tensor.shape[0]).reshape(-1, *[1] * (tensor.dim() - 1))
    batches = [torch.randn(shape) for _ in range(3)]
    program = trace(model.eval(), (batches[0],), dynamic={"x": {0: "batch"}})
    return Quantize(calibration=batches, skip=(r"middle(\..*)?",))(program)


@pytest.mark.parametrize("name", MODELS)
def test_a_float_layer_between_integers_keeps_its_weight(name: str, tmp_path: Path) -> None:
    program = quantized(name)
    artifact = lower(program, "onnxruntime", tmp_path)
    inputs = [torch.randn(5, *MODELS[name]()[1][1:])]
    assert difference(program.run(inputs), artifact.run_flat(inputs)).sqnr > 100
    kernels = [node.op_type for node in optimized(tmp_path / "model.onnx").node]
    assert sum(kernel in INTEGER for kernel in kernels) == 2


def test_a_file_with_one_is_read_back(tmp_path: Path) -> None:
    program = quantized("transposed")
    lower(program, "onnxruntime", tmp_path)
    assert "Cast" in [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    inputs = [torch.randn(5, 3, 8, 8)]
    assert difference(program.run(inputs), load_onnx(tmp_path / "model.onnx").run(inputs)).sqnr > 100
