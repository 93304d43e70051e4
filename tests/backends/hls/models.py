"""Models that the hls target is tried on, and how they get to it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.backends.hls.artifact import HlsArtifact
from tersor.backends.hls.backend import Hls
from tersor.backends.hls.build import Builder
from tersor.backends.hls.graph import Graph
from tersor.backends.hls.rules import RULES
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Scheme
from tersor.passes.manager import PassManager
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize


def jet_tagger() -> nn.Module:
    """The MLP of the jet-tagging benchmark (Duarte et al. 2018, arXiv:1804.06913)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((16, 64), (64, 32), (32, 32)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 5))


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(inner)) + self.skip(x))


class ResNet(nn.Module):
    """ResNet-8 of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597) at width 16."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))
        return result


class Separable(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depth = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()
        )
        self.point = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.point(self.depth(x))
        return result


class DsCnn(nn.Module):
    """The keyword spotter of MLPerf Tiny: inputs [1, 1, 49, 10], width 64."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, (10, 4), 2, (5, 1)), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*[Separable(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.avg_pool2d(self.blocks(self.stem(x)), (25, 5)).flatten(1))
        return result


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return x + result if self.adds else result


class MobileNetV2(nn.Module):
    """All 17 blocks at a quarter of the width, for small images."""

    SETTINGS = ((1, 4, 1, 1), (6, 8, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2), (6, 24, 3, 1), (6, 40, 3, 2), (6, 80, 1, 1))

    def __init__(self, settings: tuple[tuple[int, int, int, int], ...] = SETTINGS, last: int = 128) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
        inputs = 8
        for expand, outputs, repeats, stride in settings:
            for index in range(repeats):
                blocks.append(Inverted(inputs, outputs, stride if index == 0 else 1, expand))
                inputs = outputs
        self.features = nn.Sequential(*blocks, nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6())
        self.head = nn.Linear(last, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(x).mean([2, 3]))
        return result


class Mixed(nn.Module):
    """Everything else: strides, dilation, groups, tables, joins, pools that pad, products, a flatten of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.wide = nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2)
        self.thin = nn.Conv2d(6, 4, 1, 2)
        self.head = nn.Linear(8 * 4 * 3, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.hardswish(self.stem(x))
        a = torch.sigmoid(F.max_pool2d(self.wide(y), 3, 2, 1))
        z = torch.cat([a, self.thin(y)], 1)
        return self.head((z * z).flatten(1)), F.avg_pool2d(y, 2)


def sequence() -> nn.Module:
    """Convolutions of one dimension, which are images of one row."""
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(18, 3),
    )  # fmt: skip


def varied(model: nn.Module) -> nn.Module:
    """Statistics of batch norms, and scales of channels, as a trained model has them: each another."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.3, 3.0),
                (module.weight.data, 0.5, 2.0), (module.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                assert isinstance(tensor, Tensor)
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def quantized(model: nn.Module, shape: tuple[int, ...], scheme: Scheme = INT8) -> Program:
    """A model after training, quantized."""
    torch.manual_seed(3)
    example = torch.randn(shape)
    quantize = Quantize(scheme, calibration=[torch.randn(shape) for _ in range(3)], coverage=Coverage.EVERYTHING)
    return PassManager([quantize]).run(trace(varied(model), (example,))).program


def streamlined(program: Program) -> Program:
    """The program that the target emits."""
    return PassManager(Hls().passes()).run(program).program


def graph_of(program: Program) -> Graph:
    """The dataflow graph of a quantized program."""
    builder = Builder(streamlined(program), RULES).build()
    assert not builder.refusals
    return builder.graph()


def emitted(program: Program, out: Path, options: Hls) -> tuple[Program, HlsArtifact]:
    """The program of the integer stage, and the artifact."""
    out.mkdir(parents=True, exist_ok=True)
    lowered = streamlined(program)
    assert not options.unsupported(lowered)
    return lowered, options.emit(lowered, out)
