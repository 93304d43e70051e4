"""Random float programs of the operators that have an integer form, small enough to make some hundreds of."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Observer
from tersor.ir.shapes import KEY, infer
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import Structure
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.correct_bias import CorrectBias
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.settle_grids import SettleGrids

aten = torch.ops.aten
BATCH = 2


@dataclass
class Builder:
    """A program under construction. `images` [N, C, H, W] and `rows` [N, C] are the values that operators may read."""

    choose: random.Random
    program: Program
    images: list[fx.Node] = field(default_factory=list)
    rows: list[fx.Node] = field(default_factory=list)

    def call(self, target: Any, *args: Any) -> fx.Node:
        node = self.program.graph.call_function(target, args)
        node.meta[KEY] = infer(self.program, node)
        return node

    def weight(self, *shape: int) -> fx.Node:
        generator = torch.Generator().manual_seed(self.choose.getrandbits(32))
        spread = torch.exp(torch.randn(shape[0], generator=generator) * 0.5)  # channels of different ranges
        values = torch.randn(shape, generator=generator) * spread.reshape(-1, *[1] * (len(shape) - 1))
        values = values / max(1, values[0].numel()) ** 0.5
        return self.program.attribute(self.program.add_tensor("weight", torch.nn.Parameter(values)))

    def bias(self, channels: int) -> fx.Node | None:
        return self.weight(channels) if self.choose.random() < 0.7 else None

    def image(self) -> fx.Node:
        return self.choose.choice(self.images[-3:])

    def like(self, node: fx.Node) -> fx.Node:
        """Another value of the same shape, or the same."""
        shape = node.meta[KEY].shape
        return self.choose.choice([other for other in self.images if other.meta[KEY].shape == shape])


def size(node: fx.Node) -> list[int]:
    return [int(length) for length in node.meta[KEY].shape]


# -- operators -------------------------------------------------------------------------------------------------------


def convolution(b: Builder) -> fx.Node:
    """Plain, grouped, depthwise, strided, dilated, padded, with a clamp or without."""
    x, choose = b.image(), b.choose
    channels = size(x)[1]
    groups = choose.choice([1, 1, 2, channels]) if channels % 2 == 0 else choose.choice([1, channels])
    out = groups * choose.randint(1, 2) if groups > 1 else choose.randint(1, 8)
    kernel = [choose.randint(1, min(3, length)) for length in size(x)[2:]]
    dilation = [choose.randint(1, 2) for _ in range(2)]
    padding = [step * (length - 1) // 2 + choose.randint(0, 1) for step, length in zip(dilation, kernel, strict=True)]
    stride = [choose.randint(1, 2) for _ in range(2)]
    weight = b.weight(out, channels // groups, *kernel)
    return clamped(b, b.call(aten.conv2d.default, x, weight, b.bias(out), stride, padding, dilation, groups))


def clamped(b: Builder, node: fx.Node) -> fx.Node:
    kind = b.choose.randint(0, 4)
    if kind == 1:
        return b.call(aten.relu.default, node)
    if kind == 2:
        return b.call(aten.relu6.default, node)
    if kind == 3:
        return b.call(aten.clamp.default, node, -b.choose.random(), b.choose.random() + 0.1)
    return node


def addition(b: Builder) -> fx.Node:
    x = b.image()
    return clamped(b, b.call(aten.add.Tensor, x, b.like(x)))


def concatenation(b: Builder) -> fx.Node:
    x = b.image()
    return b.call(aten.cat.default, [x, b.like(x), b.like(x)][: b.choose.randint(2, 3)], 1)


def max_pooling(b: Builder) -> fx.Node:
    x = b.image()
    kernel = [b.choose.randint(1, min(3, length)) for length in size(x)[2:]]
    padding = [b.choose.randint(0, length // 2) for length in kernel]
    return b.call(aten.max_pool2d.default, x, kernel, [b.choose.randint(1, 2)] * 2, padding)


def movement(b: Builder) -> fx.Node:
    x = b.image()
    channels = size(x)[1]
    kind = b.choose.randint(0, 3)
    if kind == 0 and channels > 1:
        return b.call(aten.slice.Tensor, x, 1, 0, channels // 2)
    if kind == 1:
        return b.call(aten.permute.default, x, [0, 1, 3, 2])
    if kind == 2 and max(size(x)[2:]) <= 8:
        return b.call(aten.constant_pad_nd.default, x, [b.choose.randint(0, 2) for _ in range(4)], 0.0)
    rows = b.call(aten.reshape.default, x, [BATCH, channels, -1])
    return b.call(aten.reshape.default, rows, size(x))


def global_pooling(b: Builder) -> fx.Node:
    mean = b.call(aten.mean.dim, b.image(), [2, 3], True)
    b.rows.append(b.call(aten.reshape.default, mean, [BATCH, -1]))
    return mean


def linear(b: Builder) -> fx.Node:
    rows = b.choose.choice(b.rows) if b.rows else b.call(aten.reshape.default, b.image(), [BATCH, -1])
    out = b.choose.randint(1, 12)
    node = clamped(b, b.call(aten.linear.default, rows, b.weight(out, size(rows)[1]), b.bias(out)))
    b.rows.append(node)
    return b.call(aten.reshape.default, node, [BATCH, out, 1, 1])


def average_pooling(b: Builder) -> fx.Node:
    x = b.image()
    kernel = [b.choose.randint(1, min(3, length)) for length in size(x)[2:]]
    return b.call(aten.avg_pool2d.default, x, kernel, [1, 1], [length // 2 for length in kernel], False, True)


def lookup(b: Builder) -> fx.Node:
    function = b.choose.choice(
        [aten.sigmoid, aten.tanh, aten.gelu, aten.silu, aten.hardswish, aten.elu, aten.erf, aten.leaky_relu, aten.sin]
    )
    return b.call(function.default, b.image())


def product(b: Builder) -> fx.Node:
    x = b.image()
    return b.call(aten.mul.Tensor, x, b.like(x))


def difference(b: Builder) -> fx.Node:
    x = b.image()
    return b.call(aten.sub.Tensor, x, b.like(x))


def attention(b: Builder) -> fx.Node:
    x = b.image()
    scores = b.call(aten.matmul.default, x, b.call(aten.transpose.int, x, -2, -1))
    weights = b.call(aten.softmax.int, b.call(aten.mul.Tensor, scores, 0.3), -1)
    return b.call(aten.matmul.default, weights, x)


def normalization(b: Builder) -> fx.Node:
    x = b.image()
    length, channels = size(x)[-1], size(x)[1]
    if b.choose.random() < 0.3:
        groups = b.choose.choice([group for group in range(1, channels + 1) if channels % group == 0])
        return b.call(aten.group_norm.default, x, groups, b.weight(channels), b.weight(channels), 1e-5)
    if b.choose.random() < 0.5:
        return b.call(aten.layer_norm.default, x, [length], b.weight(length), b.weight(length), 1e-5)
    return b.call(aten.rms_norm.default, x, [length], b.weight(length), 1e-6)


def resizing(b: Builder) -> fx.Node:
    x = b.image()
    height, width = (length if length > 6 else length * b.choose.randint(1, 3) for length in size(x)[2:])
    return b.call(aten.upsample_nearest2d.default, x, [height, width])


Operator = Callable[[Builder], fx.Node]
EXACT: tuple[Operator, ...] = (
    convolution, convolution, addition, concatenation, max_pooling, movement, global_pooling, linear,
)  # fmt: skip
"""Those that ONNX Runtime computes with the same bits."""
EVERY: tuple[Operator, ...] = (
    *EXACT, average_pooling, lookup, lookup, product, difference, attention, normalization, resizing,
)  # fmt: skip


# -- programs --------------------------------------------------------------------------------------------------------


def float_program(seed: int, operators: tuple[Operator, ...], count: int) -> Program:
    """A program of one input that starts with a convolution and ends in the last value, and those that nobody reads."""
    choose = random.Random(seed)
    shape = (BATCH, choose.randint(1, 6), choose.randint(4, 8), choose.randint(4, 8))
    graph = fx.Graph()
    x = graph.placeholder("x")
    specs = (TensorSpec("x", torch.float32, shape),)
    signature = Signature(specs, Structure("tuple", (Structure("leaf"),)), Structure("dict"), Structure("leaf"))
    graph.output((x,))
    program = Program.build(graph, {}, signature, name="Random")
    builder = Builder(choose, program, [x])
    with graph.inserting_before(graph.output_node()):
        for operator in [convolution, *(choose.choice(operators) for _ in range(count))]:
            builder.images.append(operator(builder))
    outputs = [node for node in graph.nodes if node.op == "call_function" and not node.users]
    graph.output_node().args = (tuple(outputs),)
    nested = Structure("tuple", (Structure("leaf"),) * len(outputs))
    program.signature = Signature(specs, signature.args, signature.kwargs, nested)
    program.changed()
    return program.verify()


def inputs(program: Program, seed: int, count: int = 1) -> list[Tensor]:
    """Random inputs float32[shape], each of another scale."""
    generator = torch.Generator().manual_seed(seed)
    shape = program.signature.inputs[0].shape
    return [torch.randn(*shape, generator=generator) * (0.5 + place) for place in range(count)]  # type: ignore[arg-type]  # static


def quantized(program: Program, seed: int) -> Program:
    """Everything on grids, calibrated on random data and settled."""
    data = inputs(program, seed, 2)
    observer = Observer.MIN_MAX if seed % 2 else Observer.MSE
    program = InsertFakeQuant(INT8, Coverage.EVERYTHING)(program)
    return CorrectBias(data)(SettleGrids()(Calibrate(data, observer)(program)))


def at_ties(program: Program, seed: int) -> Tensor:
    """An input whose values lie on the ties of the grid that they are rounded to, and next to them."""
    (first,) = [node for node in program.graph.nodes if node.args[:1] == (program.placeholders[0],)][:1]
    scale, zero_point = (program.constant(argument) for argument in first.args[1:3])
    assert scale is not None
    assert zero_point is not None
    shape = program.signature.inputs[0].shape
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-128, 128, shape, generator=generator) - zero_point + 0.5  # type: ignore[arg-type]  # static
    ties = (steps * scale).float()
    by = torch.randint(-1, 2, shape, generator=generator).to(torch.int32)  # type: ignore[arg-type]
    return (ties.view(torch.int32) + by).view(torch.float32)
