"""Each operator, lowered, against an independent computation in numpy that reads only the grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.ir.integer_norms import INT_NORMALIZE
from tersor.ir.integer_operators import (
    INT_ADD,
    INT_CONV,
    INT_LINEAR,
    INT_LOOKUP,
    INT_MATMUL,
    INT_MAX_POOL,
    INT_MUL,
    INT_RESIZE_NEAREST,
    INT_SUM,
    INT_SUM_POOL,
)
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, INT8_PER_TENSOR, INT8_SYMMETRIC, W4A8, Scheme
from tersor.passes.compare import node_values
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.integer.lower_to_integer import LowerToInteger

from .numpy_reference import Array, Grid, Layers, Reading, convolved, quantized, windows

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(2, 8, 9, 7, generator=GENERATOR) + 0.3
OTHER = torch.randn(2, 8, 9, 7, generator=GENERATOR) * 0.4
ROWS = torch.randn(5, 12, generator=GENERATOR)


def lowered(model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Reading, Program]:
    """The numbers of the fake-quantized program, and the integer program, in which nothing is float."""
    torch.manual_seed(0)
    program = quantized(model, *inputs, **options)
    integer = LowerToInteger()(program)
    assert not float_islands(integer)
    return Reading(program), integer


def check(program: Program, inputs: tuple[Tensor, ...], grid: Grid, expected: Array) -> None:
    """The output stands for the expected stored values."""
    output = program(*inputs)
    np.testing.assert_array_equal(output.numpy(), grid.dequantize(expected))


def uses(program: Program, target: Any) -> bool:
    return bool(program.graph.find_nodes(op="call_function", target=target))


# -- sums of products ------------------------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": (1, 2)},
    "strided": {"stride": (2, 1), "padding": 1},
    "dilated": {"dilation": (1, 2), "padding": 2},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 8, "padding": 1},
    "depthwise, dilated": {"groups": 8, "dilation": 2, "padding": 2},
    "no bias": {"bias": False},
}
CLAMPS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "alone": (lambda x: x, -np.inf, np.inf),
    "relu": (torch.relu, 0.0, np.inf),
    "relu6": (F.relu6, 0.0, 6.0),
    "clip": (lambda x: torch.clamp(x, -0.3, 0.7), -0.3, 0.7),
}


@pytest.mark.parametrize("scheme", [INT8, INT8_SYMMETRIC, INT8_PER_TENSOR, W4A8], ids=str)
@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_conv2d(geometry: str, scheme: Scheme) -> None:
    check_convolution(geometry, "relu", scheme)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_clamps_are_fused(clamp: str) -> None:
    check_convolution("padded", clamp, INT8)


def check_convolution(geometry: str, clamp: str, scheme: Scheme) -> None:
    layer = nn.Conv2d(8, 16, 3, **CONVOLUTIONS[geometry])
    after, low, high = CLAMPS[clamp]
    reading, program = lowered(Layers(lambda m, x: after(m.layer(x)), layer=layer), IMAGE, scheme=scheme)
    assert len([n for n in program.graph.nodes if n.op == "call_function"]) == 4  # quantize .. dequantize
    source, grid = reading.grid("inputs_0"), reading.grid({"alone": "conv2d", "clip": "clamp"}.get(clamp, clamp))
    weight, scales = reading.weight(next(name for name in reading.nodes if "weight" in name))
    if scheme is W4A8:
        assert int(np.abs(weight).max()) <= 7
    x = source.quantize(IMAGE.numpy()) - source.zero
    acc = convolved(x, weight, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
    if layer.bias is not None:
        acc += reading.bias(name_of(reading, "bias"), source.scale, scales).reshape(-1, 1, 1)
    multiplier = (source.scale * scales) / grid.scale
    ends = grid.quantize(np.array([low, high]))
    expected = replace(grid, low=int(ends[0]), high=int(ends[1])).requantize(acc, multiplier.reshape(-1, 1, 1))
    assert len(np.unique(expected)) > 20
    check(program, (IMAGE,), grid, expected)


def name_of(reading: Reading, part: str) -> str:
    """The one tensor whose name ends so."""
    (name,) = [name for name in reading.program.tensors() if name.endswith(part)]
    return name


def test_conv1d() -> None:
    layer, x = nn.Conv1d(8, 6, 3, padding=1, stride=2), IMAGE.flatten(2)
    reading, program = lowered(Layers(lambda m, x: m.layer(x), layer=layer), x)
    source, grid = reading.grid("inputs_0"), reading.grid("conv1d")
    weight, scales = reading.weight(name_of(reading, "weight"))
    values = (source.quantize(x.numpy()) - source.zero)[:, :, None]
    acc = convolved(values, weight[:, :, None], [1, 2], [0, 1], [1, 1], 1)[:, :, 0]
    acc += reading.bias(name_of(reading, "bias"), source.scale, scales).reshape(-1, 1)
    check(program, (x,), grid, grid.requantize(acc, ((source.scale * scales) / grid.scale).reshape(-1, 1)))
    assert uses(program, INT_CONV)


def test_conv3d() -> None:
    """A sum of two-dimensional convolutions, one for each slice of the filter's depth."""
    layer, x = nn.Conv3d(3, 4, (2, 3, 3), padding=(0, 1, 1)), torch.randn(1, 3, 4, 5, 5)
    reading, program = lowered(Layers(lambda m, x: m.layer(x), layer=layer), x)
    source, grid = reading.grid("inputs_0"), reading.grid("conv3d")
    weight, scales = reading.weight(name_of(reading, "weight"))
    values = source.quantize(x.numpy()) - source.zero
    planes = [
        sum(convolved(values[:, :, at + tap], weight[:, :, tap], [1, 1], [1, 1], [1, 1], 1) for tap in (0, 1))
        for at in range(3)
    ]
    acc = np.stack(planes, 2) + reading.bias(name_of(reading, "bias"), source.scale, scales).reshape(-1, 1, 1, 1)
    check(program, (x,), grid, grid.requantize(acc, ((source.scale * scales) / grid.scale).reshape(-1, 1, 1, 1)))
    assert uses(program, INT_CONV)


def test_linear() -> None:
    reading, program = lowered(Layers(lambda m, x: torch.relu(m.layer(x)), layer=nn.Linear(12, 7)), ROWS)
    source, grid = reading.grid("inputs_0"), reading.grid("relu")
    weight, scales = reading.weight(name_of(reading, "weight"))
    acc = (source.quantize(ROWS.numpy()) - source.zero) @ weight.T
    acc += reading.bias(name_of(reading, "bias"), source.scale, scales)
    expected = replace(grid, low=grid.zero).requantize(acc, (source.scale * scales) / grid.scale)
    check(program, (ROWS,), grid, expected)
    assert uses(program, INT_LINEAR)


def test_batched_matrix_products() -> None:
    a, b = IMAGE, OTHER.transpose(-1, -2)
    reading, program = lowered(Layers(lambda m, a, b: (m.layer(a) @ b) * 0.25, layer=nn.Conv2d(8, 8, 1)), a, b)
    left, right, grid = (reading.grid(name) for name in ("conv2d", "inputs_1", "mul"))
    stored = stored_before(program, INT_MATMUL, (a, b))
    acc = (stored[0] - left.zero) @ (stored[1] - right.zero)
    multiplier = (left.scale * right.scale) * np.float32(0.25) / grid.scale
    check(program, (a, b), grid, grid.requantize(acc, multiplier))


def stored_before(program: Program, target: Any, inputs: tuple[Tensor, ...]) -> list[Array]:
    """The int8 operands of the one node of an operator, as int64."""
    (node,) = program.graph.find_nodes(op="call_function", target=target)
    operands = node.args[0] if isinstance(node.args[0], list | tuple) else node.all_input_nodes[:2]
    values: dict[Any, Tensor] = {}
    node_values(program, inputs, lambda n, value: values.update({n: value}))
    return [values[operand].numpy().astype(np.int64) for operand in operands]


# -- two operands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "sub"])
def test_sums(name: str) -> None:
    function = torch.add if name == "add" else torch.sub
    model = Layers(lambda m, a, b: torch.relu(function(m.layer(a), b)), layer=nn.Conv2d(8, 8, 1))
    reading, program = lowered(model, IMAGE, OTHER)
    left, right, grid = (reading.grid(node) for node in ("conv2d", "inputs_1", "relu"))
    a, b = stored_before(program, INT_ADD, (IMAGE, OTHER))
    terms = left.dequantize(a), right.dequantize(b) * np.float32(1 if name == "add" else -1)
    steps = np.rint((terms[0] + terms[1]) / grid.scale)
    check(program, (IMAGE, OTHER), grid, np.clip(steps + grid.zero, grid.zero, grid.high).astype(np.int64))


def test_products() -> None:
    model = Layers(lambda m, a, b: m.layer(a) * b, layer=nn.Conv2d(8, 8, 1))
    reading, program = lowered(model, IMAGE, OTHER)
    left, right, grid = (reading.grid(node) for node in ("conv2d", "inputs_1", "mul"))
    a, b = stored_before(program, INT_MUL, (IMAGE, OTHER))
    multiplier = (left.scale * right.scale) / grid.scale
    check(program, (IMAGE, OTHER), grid, grid.requantize((a - left.zero) * (b - right.zero), multiplier))


# -- pooling, reductions ---------------------------------------------------------------------------------------------


def of_convolution(function: Callable[[Tensor], Tensor]) -> tuple[Reading, Program]:
    return lowered(Layers(lambda m, x: function(m.layer(x)), layer=nn.Conv2d(8, 8, 1)), IMAGE)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (3, 1)])
def test_max_pooling(stride: int, padding: int) -> None:
    reading, program = of_convolution(lambda x: F.max_pool2d(x, (3, 2), stride, padding))
    grid = reading.grid("conv2d")
    (x, *_) = stored_before(program, INT_MAX_POOL, (IMAGE,))
    check(program, (IMAGE,), grid, windows(x, (3, 2), stride, padding, -128).max(-1))


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_average_pooling(stride: int, padding: int, counted: bool) -> None:
    reading, program = of_convolution(lambda x: F.avg_pool2d(x, (3, 2), stride, padding, count_include_pad=counted))
    source, grid = reading.grid("conv2d"), reading.grid("avg_pool2d")
    (x, *_) = stored_before(program, INT_SUM_POOL, (IMAGE,))
    sums = windows(x - source.zero, (3, 2), stride, padding, 0).sum(-1)
    counts = windows(np.ones_like(x), (3, 2), stride, padding, 0).sum(-1) if not counted else np.full(sums.shape, 6)
    multiplier = source.scale / (grid.scale * counts.astype(np.float32))
    check(program, (IMAGE,), grid, grid.requantize(sums, multiplier))


REDUCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], bool]] = {
    "global pooling": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), (2, 3), True),
    "mean of an image": (lambda x: x.mean((2, 3)), (2, 3), True),
    "mean of channels": (lambda x: x.mean(1), (1,), True),
    "sum": (lambda x: x.sum((1, 3)), (1, 3), False),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    function, dims, mean = REDUCTIONS[name]
    reading, program = of_convolution(function)
    last = next(key for key in reading.nodes if key.startswith(("mean", "sum", "adaptive")))
    source, grid = reading.grid("conv2d"), reading.grid(last)
    (x, *_) = stored_before(program, INT_SUM, (IMAGE,))
    count = np.float32(np.prod([x.shape[dim] for dim in dims]) if mean else 1)
    acc = (x - source.zero).sum(dims)
    check(program, (IMAGE,), grid, grid.requantize(acc, source.scale / (grid.scale * count)))


# -- normalization by groups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_in_python_integers(groups: int, affine: bool) -> None:
    """The stated formula over the channels of a group, with weight and bias by channel; 8 is instance norm."""
    norm = nn.InstanceNorm2d(8, affine=affine) if groups == 8 else nn.GroupNorm(groups, 8, affine=affine)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(8))
    reading, program = lowered(Layers(lambda m, x: m.norm(m.layer(x)), layer=nn.Conv2d(8, 8, 1), norm=norm), IMAGE)
    source, grid = reading.grid("conv2d"), reading.grid("instance_norm" if groups == 8 else "group_norm")
    (node,) = program.graph.find_nodes(op="call_function", target=INT_NORMALIZE)
    weight, bias = (program.constant(argument) for argument in node.args[1:3])
    x = stored_before(program, INT_NORMALIZE, (IMAGE,))[0] - source.zero
    acc = np.zeros_like(x)
    n = int(np.prod(x.shape[2:]))
    for (image, group), rows in ((at, x[at].reshape(-1).tolist()) for at in np.ndindex(*x.shape[:2])):
        total = sum(rows)
        epsilon = round(1e-5 * n**2 / float(source.scale) ** 2 * 2**16)
        root = max(1, math.isqrt(((n * sum(v * v for v in rows) - total**2) << 16) + epsilon))
        t = [((n * v - total) * (2**48 // root) + 2**27) >> 28 for v in rows]
        acc[image, group] = np.array(t).reshape(x.shape[2:])
    scale = np.float32(2.0**-12)
    if affine:
        assert weight is not None
        assert bias is not None
        acc = acc * weight.numpy().astype(np.int64) + bias.numpy()
        given = norm.weight.detach().double().numpy()
        scale = np.float32(np.abs(given).max() / 2047 / 4096)
        np.testing.assert_array_equal(weight.numpy().ravel(), np.rint(given / float(scale) / 4096))
    check(program, (IMAGE,), grid, grid.requantize(acc.reshape(IMAGE.shape), scale / grid.scale))


def test_a_norm_by_stored_statistics_is_none_of_its_input() -> None:
    norm = nn.InstanceNorm2d(8, track_running_stats=True)
    program = quantized(Layers(lambda m, x: m.norm(m.layer(x)), layer=nn.Conv2d(8, 8, 1), norm=norm), IMAGE)
    assert not uses(LowerToInteger()(program), INT_NORMALIZE)


# -- tables ----------------------------------------------------------------------------------------------------------

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "hardswish": F.hardswish,
    "elu": F.elu, "erf": torch.erf, "exp": torch.exp, "sin": torch.sin, "softplus": F.softplus, "abs": torch.abs,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1), "mish": F.mish, "selu": F.selu, "square": lambda x: x**2,
    "log of relu": lambda x: torch.log(torch.relu(x) + 1), "reciprocal": lambda x: 1 / (x.abs() + 0.5),
    "hard sigmoid in parts": lambda x: F.relu6(x + 3) / 6, "negative factor": lambda x: x * -0.7,
    "two after another": lambda x: torch.tanh(torch.exp(x) - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_a_function_of_one_value_is_one_table(name: str) -> None:
    reading, program = of_convolution(UNARY[name])
    first, last = (name for name in reading.nodes if "weight" not in name and name != "inputs_0")
    source, grid = reading.grid(first), reading.grid(last)
    (node,) = program.graph.find_nodes(op="call_function", target=INT_LOOKUP)
    table = program.constant(node.args[1])
    assert table is not None
    exact = UNARY[name](torch.from_numpy(source.dequantize(np.arange(-128, 128)))).numpy()
    np.testing.assert_array_equal(table.numpy(), grid.quantize(exact))
    x = stored_before(program, INT_LOOKUP, (IMAGE,))[0]
    check(program, (IMAGE,), grid, table.numpy()[x + 128].astype(np.int64))


# -- movement --------------------------------------------------------------------------------------------------------

MOVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Array, int], Array]]] = {
    "reshape": (lambda x: x.reshape(2, 4, 2, -1), lambda q, _: q.reshape(2, 4, 2, -1)),
    "permute": (lambda x: x.permute(0, 2, 3, 1), lambda q, _: q.transpose(0, 2, 3, 1)),
    "slice": (lambda x: x[:, 1:7:2], lambda q, _: q[:, 1:7:2]),
    "split": (lambda x: torch.split(x, [3, 5], 1)[1], lambda q, _: q[:, 3:]),
    "chunk": (lambda x: x.chunk(2, 1)[0], lambda q, _: q[:, :4]),
    "select": (lambda x: x[:, 2], lambda q, _: q[:, 2]),
    "concat": (lambda x: torch.cat([x, x[:, :2]], 1), lambda q, _: np.concatenate([q, q[:, :2]], 1)),
    "stack": (lambda x: torch.stack([x, x], 1), lambda q, _: np.stack([q, q], 1)),
    "pad": (
        lambda x: F.pad(x, (1, 2, 0, 1)),
        lambda q, zero: np.pad(q, [(0, 0), (0, 0), (0, 1), (1, 2)], constant_values=zero),
    ),
    "flip": (lambda x: x.flip(3), lambda q, _: q[..., ::-1]),
    "roll": (lambda x: x.roll(2, 3), lambda q, _: np.roll(q, 2, 3)),
    "expand": (lambda x: x[:, :1].expand(-1, 3, -1, -1), lambda q, _: np.repeat(q[:, :1], 3, 1)),
    "index": (lambda x: x[:, [3, 1, 1]], lambda q, _: q[:, [3, 1, 1]]),
    "gather": (
        lambda x: x.gather(3, torch.tensor([4, 0, 2]).expand(2, 8, 9, 3)),
        lambda q, _: q[..., [4, 0, 2]],
    ),
    "pixel shuffle": (
        lambda x: F.pixel_shuffle(x, 2),
        lambda q, _: q.reshape(2, 2, 2, 2, 9, 7).transpose(0, 1, 4, 2, 5, 3).reshape(2, 2, 18, 14),
    ),
    "maximum of rows": (lambda x: x.amax(3), lambda q, _: q.max(3)),
}  # fmt: skip


def convolved_values(program: Program) -> Array:
    """What the convolution before the movement gives, int64."""
    found: dict[str, Any] = {}
    node_values(program, (IMAGE,), lambda node, value: found.update({node.name: value}))
    stored: Array = found["requantize"].numpy().astype(np.int64)
    return stored


@pytest.mark.parametrize("name", MOVES)
def test_data_is_moved_as_int8(name: str) -> None:
    function, moved = MOVES[name]
    reading, program = of_convolution(function)
    grid = reading.grid("conv2d" if name not in ("concat", "stack") else next(n for n in reading.nodes if "conv" in n))
    check(program, (IMAGE,), grid, moved(convolved_values(program), grid.zero))


def test_resizing_to_the_nearest() -> None:
    reading, program = of_convolution(lambda x: F.interpolate(x, scale_factor=2))
    (x, *_) = stored_before(program, INT_RESIZE_NEAREST, (IMAGE,))
    check(program, (IMAGE,), reading.grid("conv2d"), x.repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize("factor", [10.0, 0.125])
def test_a_constant_goes_into_the_multipliers_of_channels(factor: float) -> None:
    """What the convolution gives is only read times a number, so it has no grid of its own."""
    model = Layers(lambda m, x: F.max_pool2d(m.layer(x) * factor, 2), layer=nn.Conv2d(8, 8, 1))
    reading, program = lowered(model, IMAGE)
    assert "tersor.int_conv" in str(program)
    assert "aten.mul" not in str(program)
    with torch.no_grad():
        given, wanted = program(IMAGE), reading.program(IMAGE)
    assert (given - wanted).abs().max() <= reading.grid("mul").scale * 1.001


def test_the_greatest_needs_no_grid() -> None:
    _, program = of_convolution(lambda x: x.argmax(1))
    np.testing.assert_array_equal(program(IMAGE).numpy(), convolved_values(program).argmax(1))


def test_an_embedding_is_a_table_of_int8() -> None:
    indices = torch.randint(0, 30, (2, 6))
    model = Layers(lambda m, i: m.linear(m.table(i)), table=nn.Embedding(30, 12), linear=nn.Linear(12, 4))
    reading, program = lowered(model, indices)
    source, grid = reading.grid("embedding"), reading.grid("linear")
    weight, scales = reading.weight(name_of(reading, "linear.weight"))
    table = reading.program.tensor(name_of(reading, "table.weight")).detach().numpy()
    acc = (source.quantize(table)[indices.numpy()] - source.zero) @ weight.T
    acc += reading.bias(name_of(reading, "bias"), source.scale, scales)
    check(program, (indices,), grid, grid.requantize(acc, (source.scale * scales) / grid.scale))
