"""Each integer operator against numpy: int64 for sums of products, float32 one operation at a time for the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tersor.ir import integer_norms as norms
from tersor.ir import integer_operators as ops
from tersor.ir.integer_stage import OPERANDS

Array = np.ndarray[Any, Any]
VALUES = torch.arange(-128, 128, dtype=torch.int8)


def int8(*shape: int, seed: int = 0, low: int = -128, high: int = 127) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(torch.int8)


def same(found: Tensor, expected: Array) -> None:
    assert tuple(found.shape) == expected.shape
    np.testing.assert_array_equal(found.numpy(), expected)


# -- sums of products ------------------------------------------------------------------------------------------------


def convolved(
    x: Array,
    weight: Array,
    zero: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """The definition, tap by tap, in int64: [N, C, H, W] and [O, C / groups, kh, kw]."""
    margins = [(0, 0), (0, 0), *((pad, pad) for pad in padding)]
    padded = np.pad(x.astype(np.int64) - zero, margins)  # the zero point stands for 0
    filters, inner, *kernel = weight.shape
    sizes = [
        (size - d * (k - 1) - 1) // s + 1
        for size, d, k, s in zip(padded.shape[2:], dilation, kernel, stride, strict=True)
    ]
    acc = np.zeros((len(x), filters, *sizes), np.int64)
    each = filters // groups
    for group, (i, j) in itertools.product(range(groups), np.ndindex(*kernel)):
        rows, columns = i * dilation[0], j * dilation[1]
        taps = padded[
            :, group * inner : (group + 1) * inner,
            rows : rows + sizes[0] * stride[0] : stride[0],
            columns : columns + sizes[1] * stride[1] : stride[1],
        ]  # fmt: skip
        part = slice(group * each, (group + 1) * each)
        acc[:, part] += np.einsum("nchw,oc->nohw", taps, weight[part, :, i, j].astype(np.int64))
    return acc


GEOMETRIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any]] = {
    "plain": ((2, 8, 9, 7), (16, 8, 3, 3), ([1, 1], [0, 0], [1, 1], 1)),
    "padded": ((2, 8, 9, 7), (16, 8, 3, 3), ([1, 1], [1, 2], [1, 1], 1)),
    "strided": ((1, 8, 9, 7), (16, 8, 3, 5), ([2, 3], [1, 2], [1, 1], 1)),
    "dilated": ((2, 8, 11, 13), (4, 8, 3, 3), ([1, 2], [2, 0], [2, 3], 1)),
    "grouped": ((2, 12, 6, 6), (8, 3, 3, 3), ([1, 1], [1, 1], [1, 1], 4)),
    "depthwise": ((2, 12, 6, 6), (12, 1, 3, 3), ([2, 1], [1, 1], [1, 1], 12)),
    "multiplied depthwise": ((1, 5, 6, 6), (15, 1, 3, 3), ([1, 1], [1, 1], [1, 1], 5)),
    "1x1": ((3, 33, 5, 1), (7, 33, 1, 1), ([1, 1], [0, 0], [1, 1], 1)),
    "wide sum": ((1, 700, 3, 3), (2, 700, 3, 3), ([1, 1], [1, 1], [1, 1], 1)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("zero_point", [0, -128, 127, 13])
def test_convolution_is_its_sum_in_int64(geometry: str, zero_point: int) -> None:
    shape, filters, rest = GEOMETRIES[geometry]
    x, weight = int8(*shape, seed=1), int8(*filters, seed=2)
    bias = torch.randint(-(2**29), 2**29, (filters[0],)).to(torch.int32)
    expected = convolved(x.numpy(), weight.numpy(), zero_point, *rest)
    same(ops.INT_CONV(x, weight, None, zero_point, *rest), expected)
    same(ops.INT_CONV(x, weight, bias, zero_point, *rest), expected + bias.numpy().reshape(1, -1, 1, 1))


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_of_rows(groups: int) -> None:
    x, weight = int8(2, 8, 17, seed=1), int8(12, 8 // groups, 5, seed=2)
    expected = convolved(
        x.numpy()[:, :, None], weight.numpy()[:, :, None], 7, [1, 2], [0, 3], [1, 2], groups
    )[:, :, 0]  # fmt: skip
    same(ops.INT_CONV(x, weight, None, 7, [2], [3], [2], groups), expected)


@pytest.mark.parametrize("value", [-128, -127, 127])
@pytest.mark.parametrize("channels", [1, 300, 515, 2049])
def test_the_extremes_are_exact_at_every_length_of_the_sum(value: int, channels: int) -> None:
    """From some length on float32 does not hold the sums; -128 is its own magnitude in int8."""
    weight = torch.full((2, channels, 3, 3), value, dtype=torch.int8)
    odd = 1 if value < 0 else -1
    weight[1, 0, 0, 0] += odd  # odd sums, which float32 loses first
    x = torch.full((1, channels, 3, 3), 127, dtype=torch.int8)
    found = ops.INT_CONV(x, weight, None, -128, [1, 1], [0, 0], [1, 1], 1)
    assert found.flatten().tolist() == [255 * value * 9 * channels, 255 * (value * 9 * channels + odd)]
    flat = ops.INT_LINEAR(x.flatten(1), weight.flatten(1), None, -128)
    assert flat.tolist() == [found.flatten().tolist()]


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_linear_is_its_sum_in_int64(shape: tuple[int, ...]) -> None:
    x, weight = int8(*shape, seed=3), int8(4, 5, seed=4)
    bias = torch.tensor([2**30, -(2**30), 0, 1], dtype=torch.int32)
    expected = (x.numpy().astype(np.int64) + 9) @ weight.numpy().astype(np.int64).T
    same(ops.INT_LINEAR(x, weight, None, -9), expected)
    same(ops.INT_LINEAR(x, weight, bias, -9), expected + bias.numpy())


@pytest.mark.parametrize(
    ("left", "right"), [((3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4)), ((2, 1, 3, 5), (6, 5, 4)), ((2, 3, 900), (900, 2))]
)
def test_matrix_products_are_exact_and_broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = int8(*left, seed=5), int8(*right, seed=6)
    a.view(-1)[:900], b.view(-1)[:900] = -128, 127
    wide = a.numpy().astype(np.int64) - 127, b.numpy().astype(np.int64) + 128
    same(ops.INT_MATMUL(a, b, 127, -128), wide[0] @ wide[1])


def test_products_over_all_pairs() -> None:
    a, b = torch.meshgrid(VALUES, VALUES, indexing="ij")
    wide = a.numpy().astype(np.int64) - 127, b.numpy().astype(np.int64) + 128
    same(ops.INT_MUL(a, b, 127, -128), wide[0] * wide[1])
    same(ops.INT_MUL(VALUES[:, None], VALUES, 127, -128), wide[0] * wide[1])


@pytest.mark.parametrize(("dims", "keepdim"), [([2, 3], True), ([-1], False), ([0, 1, 2, 3], False), ([1], True)])
def test_sums_over_dimensions(dims: list[int], keepdim: bool) -> None:
    x = int8(2, 3, 4, 5)
    expected = (x.numpy().astype(np.int64) + 100).sum(tuple(dims), keepdims=keepdim)
    same(ops.INT_SUM(x, dims, keepdim, -100), np.asarray(expected))


# -- windows ---------------------------------------------------------------------------------------------------------


def windows(
    x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], fill: int, sizes: Any
) -> Any:
    """Each window's values: [N, C, OH, OW, kernel values]; beyond the input there is `fill`."""
    margins = [(0, 0), (0, 0), *((pad, pad + 64) for pad in padding)]
    padded = np.pad(x.astype(np.int64), margins, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=(2, 3))
    steps = view[:, :, :: stride[0], :: stride[1]][:, :, : sizes[0], : sizes[1]]
    return steps.reshape(*steps.shape[:4], -1)


POOLS = [
    ([2, 2], [2, 2], [0, 0], False), ([3, 3], [2, 2], [1, 1], False), ([3, 2], [2, 3], [1, 0], True),
    ([3, 3], [2, 2], [1, 1], True), ([7, 9], [1, 1], [0, 0], False),
]  # fmt: skip


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("zero_point", [-128, 5])
def test_pools_are_sums_and_maxima_of_windows(pool: tuple[Any, ...], zero_point: int) -> None:
    kernel, stride, padding, ceil_mode = pool
    x = int8(2, 3, 8, 10)
    most = ops.INT_MAX_POOL(x, kernel, stride, padding, [1, 1], ceil_mode)
    sizes = torch.nn.functional.max_pool2d(x.float(), kernel, stride, padding, 1, ceil_mode).shape[2:]
    same(most, windows(x.numpy(), kernel, stride, padding, -1000, sizes).max(-1))
    sums = ops.INT_SUM_POOL(x, zero_point, kernel, stride, padding, ceil_mode)
    same(sums, (windows(x.numpy(), kernel, stride, padding, zero_point, sizes) - zero_point).sum(-1))


def test_pools_of_rows_are_those_of_images_of_height_one() -> None:
    x = int8(2, 3, 17)
    flat = ops.INT_SUM_POOL(x, 3, [4], [3], [2], True)
    assert torch.equal(flat, ops.INT_SUM_POOL(x.unsqueeze(2), 3, [1, 4], [1, 3], [0, 2], True).squeeze(2))
    most = ops.INT_MAX_POOL(x, [3], [2], [1], [2], False)
    assert torch.equal(most, ops.INT_MAX_POOL(x.unsqueeze(2), [1, 3], [1, 2], [0, 1], [1, 2], False).squeeze(2))


def test_pools_keep_the_extremes() -> None:
    x = torch.full((1, 1, 4, 4), -128, dtype=torch.int8)
    assert ops.INT_MAX_POOL(x, [3, 3], [2, 2], [1, 1], [1, 1], False).unique().tolist() == [-128]
    assert ops.INT_SUM_POOL(x, 127, [4, 4], [4, 4], [0, 0], False).tolist() == [[[[-255 * 16]]]]


@pytest.mark.parametrize(
    ("size", "scales"), [([8, 15], None), ([6, 7], [1.5, 1.5]), ([2, 3], None), (None, [2.0, 3.0]), (None, [1.7, 0.6])]
)
def test_resize_takes_the_source_position_that_the_scale_points_to(
    size: list[int] | None, scales: list[float] | None
) -> None:
    x = int8(2, 3, 4, 5)
    sizes = size or [int(np.floor(length * s)) for length, s in zip((4, 5), scales or (), strict=True)]
    ratios = [1 / s for s in scales] if scales else [length / s for length, s in zip((4, 5), sizes, strict=True)]
    rows, columns = (
        np.minimum(np.floor(np.arange(s) * np.float32(r)).astype(int), length - 1)
        for s, r, length in zip(sizes, ratios, (4, 5), strict=True)
    )
    same(ops.INT_RESIZE_NEAREST(x, size, scales), x.numpy()[:, :, rows][..., columns])


# -- one value at a time ---------------------------------------------------------------------------------------------


def rounded(steps: Array, zero_point: int, low: int, high: int) -> Array:
    """Float32 steps onto a grid; np.rint rounds half to even."""
    assert steps.dtype == np.float32
    return np.clip(np.rint(steps).astype(np.float64) + zero_point, low, high)


TIES = [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 126.5, 127.5, -127.5, -128.5]


def test_ties_round_to_even() -> None:
    """0.5 to 0, 1.5 to 2, -2.5 to -2."""
    expected = [-4, -2, -2, 0, 0, 2, 2, 4, 126, 127, -128, -128]
    assert ops.QUANTIZE(torch.tensor(TIES), torch.tensor(1.0), 0, -128, 127).tolist() == expected
    doubled = torch.tensor([int(2 * tie) for tie in TIES], dtype=torch.int32)
    assert ops.REQUANTIZE(doubled, torch.tensor(0.5), 0, -128, 127).tolist() == expected
    odd = ops.REQUANTIZE(doubled, torch.tensor(0.5), 1, -128, 127).tolist()
    assert odd == [min(value + 1, 127) for value in expected[:-1]] + [-127]  # rounded before the zero point is added


@settings(max_examples=60, deadline=None)
@given(
    st.floats(2.0**-100, 2.0**100, width=32), st.integers(-128, 127), st.integers(-128, 0), st.integers(0, 127),
    st.integers(0, 2**32),
)  # fmt: skip
def test_quantize_divides_in_float32(scale: float, zero_point: int, low: int, high: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    near_ties = (random.integers(-300, 300, 500) + 0.5).astype(np.float32) * np.float32(scale)
    x = np.concatenate(
        [near_ties, np.nextafter(near_ties, np.float32(0)), np.array([0.0, -0.0, np.inf, -np.inf], np.float32)]
    )
    found = ops.QUANTIZE(torch.from_numpy(x), torch.tensor(scale), zero_point, low, high)
    assert found.dtype is torch.int8
    same(found, rounded(x / np.float32(scale), zero_point, low, high))


@settings(max_examples=60, deadline=None)
@given(st.floats(2.0**-40, 128, width=32), st.integers(-128, 127), st.integers(-128, 127), st.integers(0, 2**32))
def test_requantize_multiplies_in_float32(multiplier: float, zero_point: int, low: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    ties = (random.integers(-300, 300, 400) + 0.5) / multiplier
    near = np.concatenate([np.floor(ties), np.ceil(ties), random.integers(-(2**31), 2**31, 100), [-(2**31), 2**31 - 1]])
    acc = np.clip(near, -(2**31), 2**31 - 1).astype(np.int32)
    found = ops.REQUANTIZE(torch.from_numpy(acc), torch.tensor(multiplier), zero_point, low, 127)
    assert found.dtype is torch.int8
    same(found, rounded(acc.astype(np.float32) * np.float32(multiplier), zero_point, low, 127))


def test_requantize_takes_a_multiplier_a_channel() -> None:
    acc = torch.randint(-(2**20), 2**20, (2, 3, 4, 5)).to(torch.int32)
    factors = torch.tensor([2**-13, 3e-5, 1e-4], dtype=torch.float32).reshape(3, 1, 1)
    steps = acc.numpy().astype(np.float32) * factors.numpy()
    same(ops.REQUANTIZE(acc, factors, -3, -128, 127), rounded(steps, -3, -128, 127))


def test_dequantize_is_a_float32_product() -> None:
    scale = torch.tensor([0.1, 1e-20, 3e10])
    q = VALUES[:255].reshape(85, 3)
    expected = (q.numpy().astype(np.float32) - np.float32(-7)) * scale.numpy()
    same(ops.DEQUANTIZE(q, scale, -7, 1), expected)
    acc = torch.tensor([2**31 - 1, -(2**31), 16777217], dtype=torch.int32)
    same(ops.DEQUANTIZE(acc, torch.tensor(0.1), 0, None), acc.numpy().astype(np.float32) * np.float32(0.1))


def test_quantize_gives_back_what_dequantize_was_given() -> None:
    for scale, zero_point in itertools.product([1e-30, 0.1, 1 / 3, 7.7e4], [-128, 0, 127]):
        step = torch.tensor(scale)
        there = ops.DEQUANTIZE(VALUES, step, zero_point, None)
        assert torch.equal(ops.QUANTIZE(there, step, zero_point, -128, 127), VALUES)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", range(6))
def test_sums_over_all_pairs(seed: int, sign: int) -> None:
    """Every step of the definition rounded to float32 by numpy, on all 65,536 pairs."""
    random = np.random.default_rng(seed)
    sa, sb = (np.float32(s) for s in np.exp(random.uniform(-6, 2, 2)))
    sc = np.float32(random.uniform(0.4, 1.5)) * np.maximum(sa, sb)
    za, zb, zc = (int(z) for z in random.integers(-128, 128, 3))
    low = int(random.integers(-128, 0))
    a, b = torch.meshgrid(VALUES, VALUES, indexing="ij")
    left = (a.numpy().astype(np.int32) - za).astype(np.float32) * sa
    right = (b.numpy().astype(np.int32) - zb).astype(np.float32) * np.float32(sign * sb)
    found = ops.INT_ADD(a, b, float(sa), za, float(sign * sb), zb, float(sc), zc, low, 127)
    assert found.dtype is torch.int8
    same(found, rounded((left + right) / sc, zc, low, 127))
    same(
        ops.INT_ADD(VALUES[:, None], VALUES, float(sa), za, float(sign * sb), zb, float(sc), zc, low, 127),
        found.numpy(),
    )


def test_lookup_reads_the_entry_of_each_value() -> None:
    table = int8(256, seed=9)
    same(ops.INT_LOOKUP(VALUES, table), table.numpy())
    assert ops.INT_LOOKUP(VALUES.reshape(4, 64), table).shape == (4, 64)


# -- shapes ----------------------------------------------------------------------------------------------------------

SCALE, TABLE = torch.tensor(0.1), torch.zeros(256, dtype=torch.int8)
EXPONENTIALS = norms.exponential_table(0.1)
IMAGE, ROW = int8(2, 8, 6, 5), int8(2, 8, 6)
CALLS: dict[object, list[tuple[Any, ...]]] = {
    ops.QUANTIZE: [(torch.randn(2, 3), SCALE, 0, -128, 127)],
    ops.DEQUANTIZE: [(IMAGE, SCALE, 0, None), (IMAGE.int(), torch.ones(8), 0, 1)],
    ops.REQUANTIZE: [(IMAGE.int(), SCALE, 0, -128, 127), (IMAGE.int(), torch.ones(8, 1, 1), 0, -128, 127)],
    ops.INT_CONV: [
        (IMAGE, int8(4, 2, 3, 3), torch.zeros(4, dtype=torch.int32), 0, [2, 1], [1, 0], [1, 2], 4),
        (ROW, int8(4, 8, 3), None, 0, [2], [1], [1], 1),
    ],
    ops.INT_LINEAR: [(IMAGE, int8(3, 5), None, 1), (IMAGE[0, 0, 0], int8(3, 5), torch.zeros(3, dtype=torch.int32), 1)],
    ops.INT_MATMUL: [(IMAGE, int8(8, 5, 3), 0, 1)],
    ops.INT_MUL: [(IMAGE, int8(8, 1, 1), 0, 1)],
    ops.INT_ADD: [
        (IMAGE, int8(8, 1, 1), 0.1, 0, 0.1, 0, 0.1, 0, -128, 127),
        (int8(5), IMAGE, 0.1, 0, 0.1, 0, 0.1, 0, -128, 127),
    ],
    ops.INT_SUM: [(IMAGE, [2, 3], True, 0), (IMAGE, [-1], False, 0)],
    ops.INT_SUM_POOL: [(IMAGE, 0, [3, 2], [2, 2], [1, 1], True), (ROW, 0, [3], [2], [1], False)],
    ops.INT_MAX_POOL: [(IMAGE, [3, 2], [2, 2], [1, 1], [1, 1], True), (ROW, [3], [2], [1], [1], False)],
    ops.INT_RESIZE_NEAREST: [(IMAGE, [12, 7], None), (IMAGE, None, [2.0, 1.5])],
    ops.INT_LOOKUP: [(IMAGE, TABLE)],
    norms.INT_SOFTMAX: [(IMAGE, EXPONENTIALS, 1, 1 << 50, 0, -128, 127)],
    norms.INT_NORMALIZE: [
        (IMAGE, torch.ones(5, dtype=torch.int32), None, 0, 1, 0, True),
        (IMAGE, None, torch.ones(6, 5, dtype=torch.int32), 0, 2, 0, False),
    ],
}


def test_every_operator_is_here() -> None:
    assert CALLS.keys() == OPERANDS.keys()
    registered = {getattr(torch.ops.tersor, name).default for name in ops.OPERATORS}
    assert registered | {norms.INT_SOFTMAX, norms.INT_NORMALIZE} == OPERANDS.keys()


@pytest.mark.parametrize("target", CALLS, ids=str)
def test_shapes_without_values_are_those_of_a_run(target: Callable[..., Tensor]) -> None:
    for arguments in CALLS[target]:
        found = target(*arguments)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(item) if isinstance(item, Tensor) else item for item in arguments]
            predicted = target(*fakes)
        assert (predicted.shape, predicted.dtype) == (found.shape, found.dtype)


@pytest.mark.parametrize("target", CALLS, ids=str)
def test_no_operator_writes_to_its_inputs(target: Callable[..., Tensor]) -> None:
    for arguments in CALLS[target]:
        before = [item.clone() if isinstance(item, Tensor) else item for item in arguments]
        target(*arguments)
        for old, new in zip(before, arguments, strict=True):
            assert torch.equal(old, new) if isinstance(old, Tensor) else old == new
