"""What a fake-quantized program of one operator comes to, in numpy: int64 sums, float32 steps, one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from tersor.frontends.torch_export import trace
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Scheme
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage
from tersor.passes.rewriting.expand_attention import ExpandAttention

Array = np.ndarray[Any, Any]


class Layers(nn.Module):
    """A function of inputs and of layers, as a model."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def quantized(model: nn.Module, *inputs: Tensor, scheme: Scheme = INT8, **options: Any) -> Program:
    """Everything that has an integer form, on grids found from the inputs."""
    program = ExpandAttention()(Canonicalize()(trace(model.eval(), inputs, **options)))
    return Calibrate([inputs])(InsertFakeQuant(scheme, Coverage.EVERYTHING)(program))


@dataclass(frozen=True)
class Grid:
    scale: np.float32
    zero: int
    low: int
    high: int

    def quantize(self, values: Array) -> Array:
        return self._stored(np.rint(values.astype(np.float32) / self.scale))

    def dequantize(self, stored: Array) -> Array:
        return (stored - self.zero).astype(np.float32) * self.scale

    def requantize(self, acc: Array, multiplier: Any) -> Array:
        return self._stored(np.rint(acc.astype(np.float32) * np.asarray(multiplier, np.float32)))

    def _stored(self, steps: Array) -> Array:
        stored: Array = np.clip(steps + self.zero, self.low, self.high).astype(np.int64)
        return stored


class Reading:
    """The numbers of a fake-quantized program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        nodes = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
        self.nodes: dict[str, fx.Node] = {self._source(node): node for node in nodes}

    def _source(self, node: fx.Node) -> str:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return str(source.target) if source.op == "get_attr" else source.name

    def grid(self, name: str) -> Grid:
        """Of the value of that name."""
        _, scale, zero, _, low, high = self.nodes[name].args
        found = [self.program.constant(argument) for argument in (scale, zero)]
        assert found[0] is not None
        assert found[1] is not None
        assert isinstance(low, int)
        assert isinstance(high, int)
        return Grid(np.float32(found[0].item()), int(found[1]), low, high)

    def weight(self, name: str) -> tuple[Array, Array]:
        """A weight's stored values, int64, and its scales, float32[channels]."""
        tensor = self.program.tensor(name).detach().numpy()
        scale = self.program.constant(self.nodes[name].args[1])
        assert scale is not None
        scales: Array = scale.detach().numpy().reshape(-1)
        wide = scales.reshape(-1, *[1] * (tensor.ndim - 1))
        return np.clip(np.rint(tensor / wide), -127, 127).astype(np.int64), scales

    def bias(self, name: str, sx: np.float32, scales: Array) -> Array:
        tensor = self.program.tensor(name).detach().numpy().astype(np.float64)
        stored: Array = np.rint(tensor / (sx * scales).astype(np.float64)).astype(np.int64)
        return stored


def convolved(
    x: Array, weight: Array, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Array:
    """Tap by tap: int64 [N, C, H, W], zero where it is padded, and [O, C / groups, kh, kw]."""
    padded = np.pad(x, [(0, 0), (0, 0), *((pad, pad) for pad in padding)])
    filters, inner, *kernel = weight.shape
    axes = zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    height, width = ((size - step * (taps - 1) - 1) // jump + 1 for size, taps, jump, step in axes)
    acc = np.zeros((len(x), filters, height, width), np.int64)
    each = filters // groups
    for group, i, j in itertools.product(range(groups), range(kernel[0]), range(kernel[1])):
        rows = slice(i * dilation[0], i * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
        columns = slice(j * dilation[1], j * dilation[1] + (width - 1) * stride[1] + 1, stride[1])
        taken = padded[:, group * inner : (group + 1) * inner, rows, columns]
        part = slice(group * each, (group + 1) * each)
        acc[:, part] += np.einsum("nchw,oc->nohw", taken, weight[part, :, i, j])
    return acc


def windows(x: Array, kernel: Sequence[int], stride: int, padding: int, fill: int) -> Array:
    """[N, C, H', W', taps] of int64 [N, C, H, W]."""
    padded = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)], constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), (2, 3))[:, :, ::stride, ::stride]
    return view.reshape(*view.shape[:4], -1)
