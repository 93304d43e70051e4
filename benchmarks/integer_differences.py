"""Where the integer stage and ONNX Runtime part, operator by operator, on the file emitted from the same program.

Each operator stands between quantized inputs and its own output grid. Values are compared as stored integers, over
several random grids and inputs; beside that, how many values the float simulation rounds to another step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tersor as ts
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.quantization.settle_grids import SettleGrids

from .results import Row

Function = Callable[["Layers", Tensor, Tensor], Tensor]


class Layers(nn.Module):
    """A function of two images float32[N, 8, 12, 12], with layers of random weights at hand."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.linear = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(144, 24)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.layer_norm, self.rms_norm, self.group_norm = nn.LayerNorm(12), nn.RMSNorm(12), nn.GroupNorm(4, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self, x, y)


OPERATORS: dict[str, Function] = {
    "convolution": lambda m, x, y: m.conv(x),
    "convolution, relu": lambda m, x, y: torch.relu(m.conv(x)),
    "convolution, clip": lambda m, x, y: torch.clamp(m.conv(x), -0.3, 0.4),
    "depthwise convolution": lambda m, x, y: m.depthwise(x),
    "linear": lambda m, x, y: m.linear(x.flatten(2)),
    "matrix product": lambda m, x, y: x @ y,
    "add": lambda m, x, y: x + y,
    "sub": lambda m, x, y: x - y,
    "mul": lambda m, x, y: x * y,
    "concat": lambda m, x, y: torch.cat([m.depthwise(x), y], 1),
    # What moves values stands behind a convolution, or it would be left to whoever reads it.
    "max pooling": lambda m, x, y: F.max_pool2d(m.depthwise(x), 3, 2, 1),
    "global average pooling": lambda m, x, y: F.adaptive_avg_pool2d(x, 1),
    "average pooling": lambda m, x, y: F.avg_pool2d(x, 3, 2),
    "average pooling, padded": lambda m, x, y: F.avg_pool2d(x, 3, 2, 1),
    "mean of channels": lambda m, x, y: x.mean(1),
    "nearest resize": lambda m, x, y: F.interpolate(m.depthwise(x), scale_factor=2),
    "pad": lambda m, x, y: F.pad(m.depthwise(x), (1, 1, 1, 1)),
    "sigmoid": lambda m, x, y: torch.sigmoid(x),
    "leaky relu": lambda m, x, y: F.leaky_relu(x, 0.1),
    "tanh": lambda m, x, y: torch.tanh(x),
    "gelu": lambda m, x, y: F.gelu(x),
    "silu": lambda m, x, y: F.silu(x),
    "hard swish": lambda m, x, y: F.hardswish(x),
    "exp": lambda m, x, y: torch.exp(x),
    "softmax": lambda m, x, y: torch.softmax(x, -1),
    "layer norm": lambda m, x, y: m.layer_norm(x),
    "rms norm": lambda m, x, y: m.rms_norm(x),
    "group norm": lambda m, x, y: m.group_norm(x),
    "instance norm": lambda m, x, y: F.instance_norm(x),
}


@dataclass
class Count:
    """Values that differ, of how many, and by how many steps at most."""

    differing: int = 0
    values: int = 0
    steps: int = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        apart = (left - right).abs()
        self.differing += int((apart > 0).sum())
        self.values += apart.numel()
        self.steps = max(self.steps, int(apart.max()))

    @property
    def percent(self) -> float:
        return 100 * self.differing / self.values


def run(quick: bool) -> list[Row]:
    """A row an operator: the share of values that ONNX Runtime gives differently, and by how much."""
    return [_row(name, function, 2 if quick else 6) for name, function in OPERATORS.items()]


def _row(name: str, function: Function, seeds: int) -> Row:
    runtime, simulation = Count(), Count()
    for seed in range(seeds):
        torch.manual_seed(seed)
        x, y = (torch.randn(2, 8, 12, 12) * torch.exp(torch.randn(())) + torch.randn(()) for _ in range(2))
        program = _quantized(Layers(function), x, y)
        held_out = x.flip(0) * 0.9, y.flip(0) * 1.1
        ours = _stored(program, LowerToInteger()(program)(*held_out))
        with tempfile.TemporaryDirectory() as folder:
            artifact = OnnxRuntime(audit=False, threads=1).emit(program, Path(folder))
            runtime.add(ours, _stored(program, artifact.run(*held_out)))
        simulation.add(ours, _stored(program, program(*held_out)))
    note = f"{runtime.differing} of {runtime.values}, {runtime.steps} steps at most; "
    note += f"{simulation.differing} from the simulation, {simulation.steps} at most"
    return Row(name, runtime.percent, "% of values", goal="", note=note)


def _quantized(model: nn.Module, x: Tensor, y: Tensor) -> Program:
    program = ts.Canonicalize()(ts.trace(model.eval(), (x, y)))
    program = ts.Calibrate([(x, y)])(ts.InsertFakeQuant(coverage=ts.Coverage.EVERYTHING)(program))
    return SettleGrids()(program)


def _stored(program: Program, values: Tensor) -> Tensor:
    """The integers that an output stands for, without the zero point."""
    node = program.outputs[0]
    while node.target is not FAKE_QUANTIZE:
        node = node.all_input_nodes[0]
    scale = program.constant(node.args[1])
    assert scale is not None
    return torch.round(values.detach() / scale.detach()).to(torch.int32)
