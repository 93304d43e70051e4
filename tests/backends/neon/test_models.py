"""Whole models give the bits of their integer-stage programs: portable under sanitizers, and on emulated processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.backends.neon.emit import variant_of
from tersor.backends.neon.steps import Convolution, Sum

from .lowered import CPUS, Machines, assert_same_bits, lower, quantized


class ResNet8(nn.Module):
    """Three stages of a residual block, two of them strided, and a classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = _conv(1, width, 1)
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.first = nn.ModuleList(_conv(a, b, stride) for a, b, stride in sizes)
        self.second = nn.ModuleList(_conv(b, b, 1) for _, b, _ in sizes)
        self.skip = nn.ModuleList(nn.Conv2d(a, b, 1, stride) for a, b, stride in sizes)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        for first, second, skip in zip(self.first, self.second, self.skip, strict=True):
            x = F.relu(second(F.relu(first(x))) + skip(x))
        return self.head(x.mean((2, 3)))


def _conv(channels: int, out: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))


class Joined(nn.Module):
    """Concat, split, groups, dilation, a residual, and two outputs; 5, 7 and 13 channels fill no block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(5, 7, 1)
        self.c, self.d = nn.Conv2d(13, 10, 3, padding=2, dilation=2), nn.Conv2d(10, 20, 3, groups=5, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.a(x), self.b(x)], 1)
        left, right = self.d(F.leaky_relu(self.c(joined))).split([7, 13], 1)
        return torch.cat([right + joined, left], 1), F.adaptive_avg_pool2d(right, 1).flatten(1)


class Mobile(nn.Module):
    """Depthwise convolutions with strides, hard swish, pools that overlap the edge, and a shuffle of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 18, 3, 2, 1), nn.Conv2d(18, 18, 5, 1, 2, groups=18)
        self.c, self.d = nn.Conv2d(18, 8, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)

    def forward(self, x: Tensor) -> Any:
        x = F.hardswish(self.b(F.relu6(self.a(x))))
        x = F.max_pool2d(self.c(x), 3, 2, 1)
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return F.pixel_shuffle(F.avg_pool2d(torch.sigmoid(self.d(x)), 3, 2, 1), 2)


class Attention(nn.Module):
    """A transformer block with a causal mask; 33 features in heads of 3."""

    def __init__(self, width: int = 33, heads: int = 11) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.other = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 50), nn.Linear(50, width)

    def forward(self, x: Tensor) -> Any:
        b, t, d = x.shape
        q, k, v = (
            part.reshape(b, t, self.heads, d // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(mixed)
        return x + self.narrow(F.gelu(self.wide(self.other(x))))


class TwoInputs(nn.Module):
    """A product of two branches, and an output that is also read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 12), nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        left = F.relu(self.a(x))
        product = left * torch.sigmoid(self.b(y))
        return self.c(product), product - left


class UNet(nn.Module):
    """Down, up by nearest, and a skip connection from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.same, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(9, 4, 3)

    def forward(self, x: Tensor) -> Any:
        small = F.silu(self.same(self.down(x)))
        return self.last(F.pad(torch.cat([F.interpolate(small, scale_factor=2.0), x], 1), (1, 2, 0, 1)))


class Sequence(nn.Module):
    """One-dimensional convolutions, then a linear layer over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 9, 5, 2, 2), nn.Conv1d(9, 9, 3, 1, 2, dilation=2, groups=9)
        self.c = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Any:
        return self.c(F.elu(self.b(torch.tanh(self.a(x)))).transpose(1, 2))


class Greatest(nn.Module):
    """Maxima of planes, of rows and of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(1, 5, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return y.amax((2, 3)), y.amax(3), self.b(y.amax(1, keepdim=True))


class Grouped(nn.Module):
    """Group and instance norm, with weights and without, of channels that fill no block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 15, 3, padding=1), nn.Conv2d(15, 6, 3, 2, 1)
        self.first, self.second = nn.GroupNorm(5, 15), nn.InstanceNorm2d(6, affine=True)
        nn.init.normal_(self.first.weight), nn.init.normal_(self.second.weight)
        nn.init.normal_(self.first.bias), nn.init.normal_(self.second.bias)

    def forward(self, x: Tensor) -> Any:
        return F.group_norm(F.relu(self.second(self.b(F.relu(self.first(self.a(x)))))), 2)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "resnet8": (ResNet8, ((1, 1, 8, 8),)),
    "joined": (Joined, ((1, 5, 9, 11),)),
    "mobile": (Mobile, ((1, 3, 37, 30),)),
    "attention": (Attention, ((2, 13, 33),)),
    "two_inputs": (TwoInputs, ((1, 7), (1, 5))),
    "unet": (UNet, ((1, 3, 12, 10),)),
    "greatest": (Greatest, ((1, 3, 9, 21),)),
    "grouped": (Grouped, ((1, 3, 9, 7),)),
    "sequence": (Sequence, ((1, 3, 37),)),
    "perceptron_of_a_batch": (
        lambda: nn.Sequential(nn.Linear(29, 33), nn.ReLU(), nn.Linear(33, 9)),
        ((6, 29),),
    ),
    "patches": (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 8, 8), nn.Flatten(2), nn.Linear(16, 5)),
        ((1, 3, 32, 32),),
    ),
}


@pytest.mark.emulated
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_the_bits_of_its_program(name: str, machines: Machines, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shapes = MODELS[name]
    sample = tuple(torch.randn(shape) for shape in shapes)
    program = quantized(make(), sample)
    artifact = lower(program, tmp_path)
    extreme = tuple(1e6 * tensor for tensor in sample)
    assert_same_bits(program, artifact, machines, tuple(CPUS), sample)
    assert_same_bits(program, artifact, machines, ("dotprod",), extreme)


def transformers_model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    import transformers as hf

    size = (1, 3, 32, 32)
    if name == "mobilenet_v2":
        return hf.MobileNetV2ForImageClassification(
            hf.MobileNetV2Config(depth_multiplier=0.35, initializer_range=0.2)
        ), size
    if name == "resnet":
        small = hf.ResNetConfig(embedding_size=12, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1])
        return hf.ResNetForImageClassification(small), size
    config = hf.ViTConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8
    )
    return hf.ViTForImageClassification(config), size


class Logits(nn.Module):
    """The logits of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x).logits


@pytest.mark.emulated
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet", "vit"])
def test_small_transformers_models(name: str, machines: Machines, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, size = transformers_model(name)
    sample = (torch.randn(size),)
    program = quantized(Logits(model), sample)
    isas = {"mobilenet_v2": ("neon", "i8mm"), "resnet": ("dotprod",), "vit": ("i8mm",)}[name]
    assert_same_bits(program, lower(program, tmp_path, isas), machines, isas, sample)


@pytest.mark.slow
@pytest.mark.emulated
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_models_of_full_size(name: str, machines: Machines, tmp_path: Path) -> None:
    import transformers as hf

    torch.manual_seed(0)
    model = (
        hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(initializer_range=0.2))
        if name == "mobilenet_v2"
        else hf.ResNetForImageClassification(hf.ResNetConfig())
    )
    sample = (torch.randn(1, 3, 224, 224),)
    program = quantized(Logits(model), sample)
    assert_same_bits(program, lower(program, tmp_path), machines, tuple(CPUS), sample)


@pytest.mark.emulated
def test_a_dynamic_batch_runs_sample_by_sample(machines: Machines, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    program = ts.trace(model, example, dynamic={"input": {0: "batch"}})
    bound = quantized(program, (example,))
    artifact = lower(bound, tmp_path, ("neon",)).on(machines.emulated)
    expected = torch.cat([bound(example[i : i + 1]) for i in range(4)])
    assert torch.equal(artifact.run(example), expected)


class Branches(nn.Module):
    """Sums whose operands are both convolutions, one convolution and a pool, and one that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 13, 3, padding=1), nn.Conv2d(3, 13, 1), nn.Conv2d(13, 13, 1)
        self.d, self.e = nn.Conv2d(13, 13, 3, padding=1, groups=13), nn.Conv2d(13, 9, 3)

    def forward(self, x: Tensor) -> Any:
        both = F.relu(self.a(x) + self.b(x))
        pooled = self.c(both) + F.max_pool2d(both, 3, 1, 1)
        twice = self.d(pooled)
        return self.e((pooled - twice) + F.silu(twice))


@pytest.mark.emulated
@pytest.mark.parametrize("size", [7, 26])
def test_sums_that_are_part_of_a_convolution(size: int, machines: Machines, tmp_path: Path) -> None:
    """Where only the sum reads the convolution's output, it is not a step of its own; the bits are the same."""
    torch.manual_seed(0)
    sample = (torch.randn(1, 3, size, size),)
    program = quantized(Branches(), sample)
    for isa in CPUS:
        steps = variant_of(program, isa).plan.steps
        assert sum(isinstance(step, Convolution) and step.residual is not None for step in steps) == 2
        assert sum(isinstance(step, Sum) for step in steps) == 2
    assert_same_bits(program, lower(program, tmp_path), machines, tuple(CPUS), sample)


@pytest.mark.emulated
def test_a_batch_of_images(machines: Machines, tmp_path: Path) -> None:
    """Each image has a border of its own; linear layers take all rows at once."""
    torch.manual_seed(0)
    sample = (torch.randn(3, 3, 9, 7),)
    model = nn.Sequential(
        Branches(), nn.Conv2d(9, 8, 3, 2, 1), nn.AvgPool2d(2, 1, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(160, 5)
    )
    assert_same_bits(program := quantized(model, sample), lower(program, tmp_path), machines, tuple(CPUS), sample)


@pytest.mark.emulated
def test_a_pool_over_what_was_padded(machines: Machines, tmp_path: Path) -> None:
    """The pad's value stands inside of the border, in which a maximum wants the least one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 7, 3, padding=1), nn.ZeroPad2d((2, 1, 0, 1)), nn.MaxPool2d(3, 1, 1))
    sample = (torch.randn(1, 1, 9, 5) - 3,)
    program = quantized(model, sample)
    assert_same_bits(program, lower(program, tmp_path, ("i8mm",)), machines, ("i8mm",), sample)
