"""Random graphs: every operator beside every other, odd sizes, and sparse weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.backends.neon.choice import KERNELS

from .lowered import CPUS, Machines, assert_same_bits, lower, quantized

Layer = Callable[[Tensor], Tensor]


class Drawn(nn.Module):
    """Layers one after another, each of which may add or join what an earlier one gave."""

    def __init__(self, kinds: list[str], channels: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        self.kinds = kinds
        for kind in kinds:
            layer, channels = _layer(kind, channels, generator)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        earlier = [x]
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            y = layer(x)
            for other in reversed(earlier):
                if kind == "add" and other.shape == y.shape:
                    y = y + other
                    break
                if kind == "join" and other.shape[2:] == y.shape[2:]:
                    y = torch.cat([y, other], 1)
                    break
            x = y
            if kind != "join":
                earlier.append(x)
        return x


class Channelwise(nn.Module):
    """An element-wise function as a module."""

    def __init__(self, function: Layer) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _layer(kind: str, channels: int, generator: torch.Generator) -> tuple[nn.Module, int]:
    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    out = number(1, 33)
    if kind == "pointwise":
        return nn.Conv2d(channels, out, 1), out
    if kind == "conv":
        size, dilation = number(1, 3), number(1, 2)
        return nn.Conv2d(channels, out, size, number(1, 2), number(0, 2), dilation), out
    if kind == "sparse":
        return _sparse(nn.Conv2d(channels, out, number(1, 3), padding=1), number(1, 8), number(1, 8), generator), out
    if kind == "depthwise":
        return nn.Conv2d(channels, channels, number(1, 5), number(1, 2), 2, groups=channels), channels
    if kind == "max_pool":
        return nn.MaxPool2d(number(2, 3), number(1, 2), 1), channels
    if kind == "average_pool":
        return nn.AvgPool2d(2, number(1, 2), number(0, 1), bool(number(0, 1)), bool(number(0, 1))), channels
    if kind == "grow":
        return Channelwise(lambda x: F.interpolate(x, scale_factor=2.0)), channels
    if kind == "pad":
        return nn.ZeroPad2d((number(0, 2), 1, 0, number(0, 2))), channels
    functions: list[Layer] = [F.elu, torch.sigmoid, F.silu, F.hardswish, torch.tanh]
    return Channelwise(functions[number(0, 4)] if kind == "function" else F.silu), channels


def _sparse(layer: nn.Conv2d, rows: int, columns: int, generator: torch.Generator) -> nn.Conv2d:
    """Four of five blocks of weights become zero."""
    out, channels, *window = layer.weight.shape
    keep = torch.rand(-(-out // rows), -(-channels // columns), *window, generator=generator) < 0.2
    mask = keep.repeat_interleave(rows, 0)[:out].repeat_interleave(columns, 1)[:, :channels]
    layer.weight.data.mul_(mask)
    return layer


KINDS = (
    "pointwise", "conv", "sparse", "depthwise", "max_pool", "average_pool", "grow", "pad", "function", "add", "join",
)  # fmt: skip


def holds(machines: Machines, kinds: list[str], size: tuple[int, int, int], isa: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(size[0], 7, 1), Drawn(kinds, 7, seed))
    sample = (torch.randn(1, *size),)
    try:
        model(sample[0])
    except RuntimeError:  # a window is larger than what is left of the plane
        return
    program = quantized(model, sample)
    with tempfile.TemporaryDirectory() as folder:
        assert_same_bits(program, lower(program, Path(folder), (isa,)), machines, (isa,), sample)


graphs = given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=9),
    size=st.tuples(st.integers(1, 5), st.integers(3, 11), st.integers(3, 11)),
    isa=st.sampled_from(sorted(KERNELS)),
    seed=st.integers(0, 1 << 16),
)
quiet = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@pytest.mark.emulated
@settings(max_examples=6, deadline=None, suppress_health_check=quiet, derandomize=True)
@graphs
def test_random_graphs(machines: Machines, kinds: list[str], size: tuple[int, int, int], isa: str, seed: int) -> None:
    holds(machines, kinds, size, isa, seed)


@pytest.mark.slow
@pytest.mark.emulated
@settings(max_examples=150, deadline=None, suppress_health_check=quiet)
@graphs
def test_many_random_graphs(
    machines: Machines, kinds: list[str], size: tuple[int, int, int], isa: str, seed: int
) -> None:
    holds(machines, kinds, size, isa, seed)


@pytest.mark.emulated
@pytest.mark.parametrize("isa", sorted(CPUS))
@pytest.mark.parametrize("block", [(1, 1), (1, 4), (2, 4), (4, 4)])
def test_sparse_weights(isa: str, block: tuple[int, int], machines: Machines, tmp_path: Path) -> None:
    """The kernel is chosen from the zeros that there are, and said with its reason."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layer = _sparse(nn.Conv2d(24, 22, 3, padding=1), *block, generator)
    model = nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), layer)
    sample = (torch.randn(1, 3, 7, 7),)
    program = quantized(model, sample)
    artifact = lower(program, tmp_path, (isa,))
    assert_same_bits(program, artifact, machines, (isa,), sample)
