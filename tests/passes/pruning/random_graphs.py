"""Random programs of convolutions, norms, attention and everything that moves channels about."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import fx, nn

from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import Structure

aten = torch.ops.aten
LEAF = Structure("leaf")


class Builder:
    """A program under construction: calls go before the output, with their shapes at once."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        graph = fx.Graph()
        x = graph.placeholder("x")
        graph.output((x,))
        spec = TensorSpec("x", torch.float64, shape)
        signature = Signature((spec,), Structure("tuple", (LEAF,)), Structure("dict"), LEAF, ("x",))
        self.program = Program.build(graph, {}, signature, name=f"random_{seed}")
        self.input = self.program.placeholders[0]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self.program.graph.inserting_before(self.program.graph.output_node()):
            return self.program.call(target, args, like=self.input, **kwargs)

    def parameter(self, *shape: int, positive: bool = False, trained: bool = True) -> fx.Node:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * 0.5
        values = values.abs() + 0.1 if positive else values
        name = self.program.add_tensor("weight", nn.Parameter(values) if trained else values)
        with self.program.graph.inserting_before(self.program.graph.output_node()):
            return self.program.attribute(name)

    def finish(self, *outputs: fx.Node) -> Program:
        self.program.graph.output_node().args = (tuple(outputs),)
        if len(outputs) > 1:
            structure = Structure("tuple", (LEAF,) * len(outputs))
            old = self.program.signature
            self.program.signature = Signature(old.inputs, old.args, old.kwargs, structure, old.parameters)
        self.program.graph.eliminate_dead_code()
        self.program.remove_unused_tensors()
        self.program.changed()
        return self.program.verify()


def shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta[KEY].shape)


# -- images ----------------------------------------------------------------------------------------------------------


def convolution(b: Builder, x: fx.Node, out: int | None = None) -> fx.Node:
    channels = shape(x)[1]
    divisors = [g for g in (1, 1, 2, 4, channels) if channels % g == 0]
    groups = 1 if out is not None else b.random.choice(divisors)
    out = groups * b.random.choice([1, 2, 3, 4, 6]) if out is None else out
    kernel = b.random.choice([1, 3])
    weight = b.parameter(out, channels // groups, kernel, kernel)
    bias = b.parameter(out) if b.random.random() < 0.5 else None
    return b.call(aten.conv2d.default, x, weight, bias, [1, 1], [kernel // 2] * 2, [1, 1], groups)


def transposed(b: Builder, x: fx.Node) -> fx.Node:
    channels = shape(x)[1]
    groups = b.random.choice([g for g in (1, 2, 4) if channels % g == 0])
    weight = b.parameter(channels, b.random.choice([1, 2, 3]), 3, 3)
    bias = b.parameter(groups * shape(weight)[1])
    return b.call(aten.conv_transpose2d.input, x, weight, bias, [1, 1], [1, 1], [0, 0], groups)


def batch_norm(b: Builder, x: fx.Node) -> fx.Node:
    channels = shape(x)[1]
    weight, bias = b.parameter(channels), b.parameter(channels)
    mean, var = b.parameter(channels, trained=False), b.parameter(channels, positive=True, trained=False)
    return b.call(aten.batch_norm.default, x, weight, bias, mean, var, False, 0.1, 1e-5, True)


def group_norm(b: Builder, x: fx.Node) -> fx.Node:
    channels = shape(x)[1]
    groups = b.random.choice([g for g in (1, 2, 4, channels) if channels % g == 0])
    return b.call(aten.group_norm.default, x, groups, b.parameter(channels), b.parameter(channels))


def activation(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(b.random.choice([aten.relu.default, aten.silu.default, aten.sigmoid.default, aten.cos.default]), x)


def shuffle(b: Builder, x: fx.Node) -> fx.Node:
    n, c, h, w = shape(x)
    groups = b.random.choice([g for g in (1, 2, 3, 4) if c % g == 0])
    y = b.call(aten.reshape.default, x, [n, groups, c // groups, h, w])
    y = b.call(aten.transpose.int, y, 1, 2)
    return b.call(aten.reshape.default, y, [n, -1, h, w])


def halves(b: Builder, x: fx.Node) -> fx.Node:
    c = shape(x)[1]
    if c < 2:
        return x
    at = b.random.randint(1, c - 1)
    first = b.call(aten.slice.Tensor, x, 1, 0, at)
    second = b.call(aten.slice.Tensor, x, 1, at - c if b.random.random() < 0.5 else at, 9223372036854775807)
    order = [second, activation(b, first)]
    b.random.shuffle(order)
    return b.call(aten.cat.default, order, 1)


def chunks(b: Builder, x: fx.Node) -> fx.Node:
    c = shape(x)[1]
    if c % 2:
        return x
    parts = b.call(aten.chunk.default, x, 2, 1)
    import operator

    first, second = b.call(operator.getitem, parts, 0), b.call(operator.getitem, parts, 1)
    return b.call(aten.mul.Tensor, first, b.call(aten.sigmoid.default, second))


def squeeze_excite(b: Builder, x: fx.Node) -> fx.Node:
    c = shape(x)[1]
    pooled = b.call(aten.mean.dim, x, [2, 3])
    hidden = b.call(aten.linear.default, pooled, b.parameter(4, c), b.parameter(4))
    gate = b.call(aten.linear.default, b.call(aten.relu.default, hidden), b.parameter(c, 4), b.parameter(c))
    gate = b.call(aten.unsqueeze.default, b.call(aten.unsqueeze.default, b.call(aten.sigmoid.default, gate), 2), 3)
    return b.call(aten.mul.Tensor, x, gate)


def pixel(b: Builder, x: fx.Node) -> fx.Node:
    c = shape(x)[1]
    if c % 4:
        return b.call(aten.avg_pool2d.default, b.call(aten.pixel_unshuffle.default, x, 2), [1, 1])
    return b.call(aten.avg_pool2d.default, b.call(aten.pixel_shuffle.default, x, 2), [2, 2])


def channels_last_norm(b: Builder, x: fx.Node) -> fx.Node:
    y = b.call(aten.permute.default, x, [0, 2, 3, 1])
    c = shape(y)[-1]
    rms = b.random.random() < 0.5
    y = (
        b.call(aten.rms_norm.default, y, [c], b.parameter(c), 1e-5)
        if rms
        else b.call(aten.layer_norm.default, y, [c], b.parameter(c), b.parameter(c))
    )
    return b.call(aten.permute.default, y, [0, 3, 1, 2])


def padded(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.pad.default, x, [0, 0, 0, 0, b.random.randint(0, 2), b.random.randint(0, 2)])


def pooled(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.max_pool2d.default, x, [3, 3], [1, 1], [1, 1])


def normalized(b: Builder, x: fx.Node) -> fx.Node:
    norm = b.call(aten.linalg_vector_norm.default, x, 2, [1], True)
    return b.call(aten.div.Tensor, x, b.call(aten.add.Tensor, norm, 1.0))


def competing(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.mul.Tensor, x, b.call(aten.softmax.int, x, 1))


IMAGE = (
    convolution, convolution, transposed, batch_norm, group_norm, activation, shuffle, halves, chunks, squeeze_excite,
    pixel, channels_last_norm, padded, pooled, normalized, competing,
)  # fmt: skip


def image_program(seed: int, steps: int = 8) -> Program:
    """A convolutional network with branches; values of one size are added or concatenated now and then."""
    b = Builder(seed, (2, 3, 6, 6))
    values = [convolution(b, b.input, b.random.choice([4, 6, 8, 12]))]
    for _ in range(steps):
        x = b.random.choice(values[-3:])
        y = b.random.choice(IMAGE)(b, x)
        values.append(y if shape(y)[2:] == (6, 6) else convolution(b, x))
        if b.random.random() < 0.3:
            values.append(join(b, *b.random.choices(values, k=2)))
    last = convolution(b, values[-1], 4)
    if b.random.random() < 0.5:
        flat = b.call(aten.flatten.using_ints, last, 1)
        return b.finish(b.call(aten.linear.default, flat, b.parameter(5, shape(flat)[1]), b.parameter(5)))
    mean = b.call(aten.mean.dim, activation(b, last), [2, 3])
    return b.finish(b.call(aten.linear.default, mean, b.parameter(5, shape(mean)[1]), b.parameter(5)))


def join(b: Builder, left: fx.Node, right: fx.Node) -> fx.Node:
    if shape(left) == shape(right):
        return b.call(b.random.choice([aten.add.Tensor, aten.mul.Tensor]), left, right)
    return b.call(aten.cat.default, [left, right], 1)


# -- sequences -------------------------------------------------------------------------------------------------------


def dense(b: Builder, x: fx.Node, out: int) -> fx.Node:
    bias = b.parameter(out) if b.random.random() < 0.5 else None
    return b.call(aten.linear.default, x, b.parameter(out, shape(x)[-1]), bias)


def rotate(b: Builder, x: fx.Node) -> fx.Node:
    """Rotary embedding with the halves exchanged, tables as buffers."""
    width = shape(x)[-1]
    half = width // 2
    table = b.call(aten.cat.default, [b.parameter(shape(x)[-2], half, trained=False)] * 2, -1)
    first = b.call(aten.slice.Tensor, x, 3, 0, half)
    second = b.call(aten.slice.Tensor, x, 3, half, 9223372036854775807)
    turned = b.call(aten.cat.default, [b.call(aten.neg.default, second), first], -1)
    straight = b.call(aten.mul.Tensor, x, b.call(aten.cos.default, table))
    return b.call(aten.add.Tensor, straight, b.call(aten.mul.Tensor, turned, b.call(aten.sin.default, table)))


def attend(b: Builder, x: fx.Node) -> fx.Node:
    n, length, width = shape(x)
    keys = b.random.choice([1, 2, 3])
    shared, size, value_size = b.random.choice([1, 2]), b.random.choice([2, 4]), b.random.choice([2, 3])

    def split(y: fx.Node, heads: int, each: int) -> fx.Node:
        return b.call(aten.transpose.int, b.call(aten.reshape.default, y, [n, length, heads, each]), 1, 2)

    heads = keys * shared
    q, k = split(dense(b, x, heads * size), heads, size), split(dense(b, x, keys * size), keys, size)
    v = split(dense(b, x, keys * value_size), keys, value_size)
    if b.random.random() < 0.5:
        q, k = rotate(b, q), rotate(b, k)
    form = b.random.choice(["gqa", "repeat", "matmul"])
    if form != "gqa":
        k, v = (repeat_heads(b, y, shared) for y in (k, v))
    if form == "matmul":
        scores = b.call(aten.matmul.default, q, b.call(aten.transpose.int, k, 2, 3))
        weights = b.call(aten.softmax.int, b.call(aten.mul.Tensor, scores, 0.5), -1)
        mixed = b.call(aten.matmul.default, weights, v)
    else:
        options = {"enable_gqa": True} if form == "gqa" else {}
        mixed = b.call(aten.scaled_dot_product_attention.default, q, k, v, **options)
    merged = b.call(aten.reshape.default, b.call(aten.transpose.int, mixed, 1, 2), [n, length, -1])
    return b.call(aten.add.Tensor, x, dense(b, merged, width))


def repeat_heads(b: Builder, x: fx.Node, times: int) -> fx.Node:
    n, heads, length, width = shape(x)
    y = b.call(aten.unsqueeze.default, x, 2)
    y = b.call(aten.expand.default, y, [n, heads, times, length, width])
    return b.call(aten.reshape.default, y, [n, heads * times, length, width])


def fused_attention(b: Builder, x: fx.Node) -> fx.Node:
    """One projection for query, key and value, taken apart by a reshape."""
    n, length, width = shape(x)
    heads, size = b.random.choice([2, 3]), 4
    fused = b.call(aten.reshape.default, dense(b, x, 3 * heads * size), [n, length, 3, heads, size])
    fused = b.call(aten.permute.default, fused, [2, 0, 3, 1, 4])
    q, k, v = (b.call(aten.select.int, fused, 0, place) for place in range(3))
    mixed = b.call(aten.scaled_dot_product_attention.default, q, k, v)
    merged = b.call(aten.reshape.default, b.call(aten.transpose.int, mixed, 1, 2), [n, length, heads * size])
    return b.call(aten.add.Tensor, x, dense(b, merged, width))


def gated(b: Builder, x: fx.Node) -> fx.Node:
    hidden = b.random.choice([4, 6, 8])
    gate = b.call(aten.silu.default, dense(b, x, hidden))
    return b.call(aten.add.Tensor, x, dense(b, b.call(aten.mul.Tensor, gate, dense(b, x, hidden)), shape(x)[-1]))


def fused_gate(b: Builder, x: fx.Node) -> fx.Node:
    y = b.call(aten.glu.default, dense(b, x, 12), -1)
    return b.call(aten.add.Tensor, x, dense(b, y, shape(x)[-1]))


def norm(b: Builder, x: fx.Node) -> fx.Node:
    width = shape(x)[-1]
    form = b.random.choice(["layer", "rms", "written out"])
    if form == "layer":
        return b.call(aten.layer_norm.default, x, [width], b.parameter(width), b.parameter(width))
    if form == "rms":
        return b.call(aten.rms_norm.default, x, [width], b.parameter(width))
    power = b.call(aten.mean.dim, b.call(aten.pow.Tensor_Scalar, x, 2), [-1], True)
    scale = b.call(aten.rsqrt.default, b.call(aten.add.Tensor, power, 1e-6))
    return b.call(aten.mul.Tensor, b.parameter(width), b.call(aten.mul.Tensor, x, scale))


def experts(b: Builder, x: fx.Node) -> fx.Node:
    """A mixture: a router picks two experts, whose weights are looked up and applied in a batch."""
    import operator

    n, length, width = shape(x)
    count, hidden, tokens = 6, 4, n * length
    flat = b.call(aten.reshape.default, x, [tokens, width])
    scores = b.call(aten.softmax.int, b.call(aten.linear.default, flat, b.parameter(count, width)), -1)
    top = b.call(aten.topk.default, scores, 2, -1)
    values, chosen = b.call(operator.getitem, top, 0), b.call(operator.getitem, top, 1)
    chosen = b.call(aten.reshape.default, chosen, [-1])
    up = b.call(aten.index.Tensor, b.parameter(count, width, hidden), [chosen])
    down = b.call(aten.index.Tensor, b.parameter(count, hidden, width), [chosen])
    rows = b.call(aten.expand.default, b.call(aten.unsqueeze.default, flat, 1), [tokens, 2, width])
    rows = b.call(aten.reshape.default, rows, [2 * tokens, 1, width])
    mixed = b.call(aten.bmm.default, b.call(aten.relu.default, b.call(aten.bmm.default, rows, up)), down)
    mixed = b.call(aten.reshape.default, mixed, [tokens, 2, width])
    total = b.call(aten.einsum.default, "tkw,tk->tw", [mixed, values])
    return b.call(aten.add.Tensor, x, b.call(aten.reshape.default, total, [n, length, width]))


SEQUENCE = (attend, fused_attention, gated, fused_gate, norm, experts)


def sequence_program(seed: int, steps: int = 4) -> Program:
    """A residual stream with attention, gated layers, norms and mixtures."""
    b = Builder(seed, (2, 4, 5))
    x = dense(b, b.input, b.random.choice([4, 6, 8]))
    for _ in range(steps):
        x = b.random.choice(SEQUENCE)(b, x)
    return b.finish(dense(b, norm(b, x), 5))
