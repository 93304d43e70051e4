"""Models that designs for FPGAs are measured on, quantized and lowered; weights are random."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.backends.hls.backend import Hls
from tersor.backends.hls.build import Builder
from tersor.backends.hls.graph import Graph
from tersor.backends.hls.rules import RULES
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, Scheme
from tersor.passes.base import Pass
from tersor.passes.manager import PassManager
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.snap_scales import SnapScales


@dataclass(frozen=True)
class Model:
    """How a model is made, the shape of its input, and the grids that it is put on."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    scheme: Scheme = INT8

    def quantized(self, *before: Pass) -> Program:
        """The program on integer grids, other passes first."""
        torch.manual_seed(0)
        model = self.make().eval()
        batches = [torch.randn(self.shape) for _ in range(4)]
        quantize = Quantize(self.scheme, calibration=batches, coverage=Coverage.EVERYTHING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PassManager([*before, quantize], progress=False).run(trace(model, (batches[0],))).program


class _Logits(nn.Module):
    """A classifier of transformers that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def mlp(*widths: int) -> nn.Module:
    """Linear layers with relu between them."""
    pairs = list(itertools.pairwise(widths))
    layers = [layer for a, b in pairs[:-1] for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(*pairs[-1]))


def _resnet8() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [16, 32, 64]
    config = ResNetConfig(embedding_size=16, hidden_sizes=sizes, depths=[1, 1, 1], layer_type="basic")
    return _Logits(ResNetForImageClassification(config))


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.35, image_size=96, tf_padding=False, initializer_range=0.2)
    return _Logits(MobileNetV2ForImageClassification(config))


def _ds_cnn() -> nn.Module:
    def step(*layer: nn.Module) -> list[nn.Module]:
        return [*layer, nn.BatchNorm2d(64), nn.ReLU()]

    blocks = [
        module
        for _ in range(4)
        for module in (*step(nn.Conv2d(64, 64, 3, 1, 1, groups=64)), *step(nn.Conv2d(64, 64, 1)))
    ]
    stem = step(nn.Conv2d(1, 64, (10, 4), 2, (5, 1)))
    return nn.Sequential(*stem, *blocks, nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(64, 12))


JET_TAGGER = Model(lambda: mlp(16, 64, 32, 32, 5), (1, 16))
DS_CNN = Model(_ds_cnn, (1, 1, 49, 10))
MODELS: dict[str, Model] = {
    "jet tagger": JET_TAGGER,
    "DS-CNN": DS_CNN,
    "ResNet-8": Model(_resnet8, (1, 3, 32, 32)),
    "MobileNetV2 x0.35": Model(_mobilenet_v2, (1, 3, 96, 96)),
    "jet tagger of 4 bits": Model(JET_TAGGER.make, JET_TAGGER.shape, INT4),
    "DS-CNN of 4 bits": Model(_ds_cnn, DS_CNN.shape, INT4),
    "ResNet-8 of 4 bits": Model(_resnet8, (1, 3, 32, 32), INT4),
    "MobileNetV2 x0.35 of 4 bits": Model(_mobilenet_v2, (1, 3, 96, 96), INT4),
}


def snapped(program: Program) -> Program:
    """The same with weight scales that make short multipliers."""
    return PassManager([SnapScales()], progress=False).run(program.copy()).program


def lowered(program: Program) -> Program:
    """The integer stage as the target takes it."""
    return PassManager(Hls().passes(), progress=False).run(program.copy()).program


def graph_of(program: Program) -> Graph:
    """The dataflow graph of a quantized program."""
    return Builder(lowered(program), RULES).build().graph()
