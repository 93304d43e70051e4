"""Cases of the convolution kernels, dense and sparse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tersor.backends.neon import pack

from .harness import UNTOUCHED, Array, Case, Int8, requantize, to_blocked


@dataclass(frozen=True)
class Shape:
    """Of a convolution. `border` is that of the output's plane; `columns` fewer pixels are asked for at each end."""

    out: int = 8
    channels: int = 8
    height: int = 3
    width: int = 5
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: int = 0
    border: int = 0
    density: float = 1.0
    depthwise: bool = False
    part: bool = False
    """Only some of the pixels and groups."""

    @property
    def plane(self) -> tuple[int, int]:
        return self.height + 2 * self.padding, self.width + 2 * self.padding

    @property
    def output(self) -> tuple[int, int]:
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sizes = [(p - r) // s + 1 for p, r, s in zip(self.plane, reach, self.stride, strict=True)]
        return sizes[0], sizes[1]


@dataclass(frozen=True)
class Numbers:
    """What a convolution computes with."""

    x: Int8
    weight: Int8
    bias: Array
    scale: Array
    x_zero: int
    y_zero: int
    low: int = -128
    high: int = 127

    def accumulators(self, shape: Shape) -> Array:
        """`[out, height, width]` in int64, straight from the definition: sum((x - zero) * w) + bias."""
        height, width = shape.output
        pad = ((0, 0), (shape.padding,) * 2, (shape.padding,) * 2)
        centred = np.pad(self.x.astype(np.int64) - self.x_zero, pad)
        acc = np.zeros((shape.out, height, width), np.int64) + self.bias.astype(np.int64)[:, None, None]
        for ky in range(shape.kernel[0]):
            for kx in range(shape.kernel[1]):
                y0, x0 = ky * shape.dilation[0], kx * shape.dilation[1]
                window = centred[:, y0:, x0:][:, :: shape.stride[0], :: shape.stride[1]][:, :height, :width]
                tap = self.weight[:, :, ky, kx].astype(np.int64)
                if shape.depthwise:
                    acc += tap[:, :, None] * window
                else:
                    acc += np.einsum("oc,chw->ohw", tap, window)
        return acc


def random_numbers(rng: np.random.Generator, shape: Shape, magic: bool) -> Numbers:
    """Every channel's outputs spread over about all of [-128, 127], with some beyond it."""
    of_one = 1 if shape.depthwise else shape.channels
    weight = rng.integers(-127, 128, (shape.out, of_one, *shape.kernel), dtype=np.int8)
    numbers = Numbers(
        x=rng.integers(-128, 128, (shape.channels, shape.height, shape.width), dtype=np.int8),
        weight=weight,
        bias=rng.integers(-5000, 5000, shape.out),
        scale=np.zeros(shape.out),
        x_zero=int(rng.integers(-128, 128)),
        y_zero=int(rng.integers(-128, 128)),
        low=int(rng.integers(-128, -100)),
        high=int(rng.integers(100, 128)),
    )
    return fit_scale(rng, thinned(rng, numbers, shape.density), shape, magic)


def thinned(rng: np.random.Generator, numbers: Numbers, density: float) -> Numbers:
    """Most of the blocks of 4 x 4 set to zero, and some single weights."""
    if density >= 1:
        return numbers
    out, channels, *kernel = numbers.weight.shape
    keep = rng.random((-(-out // 4), -(-channels // 4), *kernel)) < density
    keep = keep.repeat(4, 0)[:out].repeat(4, 1)[:, :channels] & (rng.random(numbers.weight.shape) < 0.8)
    return replace(numbers, weight=numbers.weight * keep)


def fit_scale(rng: np.random.Generator, numbers: Numbers, shape: Shape, magic: bool) -> Numbers:
    """A scale a channel; where not magic, some so great that the product leaves the range of int32."""
    reach = np.abs(numbers.accumulators(shape)).max(axis=(1, 2)) + 1
    scale = (rng.uniform(0.3, 1.5, shape.out) * 160 / reach).astype(np.float32)
    if not magic:
        scale[rng.random(shape.out) < 0.2] *= np.float32(1e9)
    return replace(numbers, scale=scale)


def block_of(kernel: str) -> int:
    """Channels in a block of what a kernel reads and writes."""
    return 8 if kernel.endswith("i8mm") or "c8" in kernel else 4


def _weights(kernel: str, numbers: Numbers, taps: Array, x_block: int) -> tuple[Array, Array, Array]:
    """Packed weights, and of a sparse kernel where its groups begin and how many blocks its rows have."""
    form, empty = kernel.removeprefix("linear_"), np.zeros(0, np.int32)
    if kernel.startswith("depthwise"):
        return pack.pack_depthwise(numbers.weight, block_of(kernel)), empty, empty
    if form.startswith("dense"):
        return pack.pack_dense(numbers.weight, pack.DENSE[form]), empty, empty
    sparse = pack.pack_sparse(numbers.weight, pack.SPARSE[form.rsplit("_", 1)[0]], taps, x_block)
    return sparse.stream, sparse.group_starts, sparse.block_counts


def conv_case(rng: np.random.Generator, kernel: str, shape: Shape, numbers: Numbers, magic: bool) -> Case:
    """The call of a kernel on these numbers."""
    block = block_of(kernel)
    x, x_block, x_row = _input(rng, shape, numbers, block)
    taps = pack.tap_offsets(shape.kernel, shape.dilation, shape.stride, shape.plane, block)
    weights, starts, counts = _weights(kernel, numbers, taps, x_block)
    bias = pack.fold_bias(numbers.bias, numbers.weight, numbers.x_zero, magic=magic)
    scale = pack.pad_channels(numbers.scale.astype(np.float32))
    ranges = _range(rng, shape)
    y, expected, y_block, y_row, y_at = _output(shape, numbers, block, ranges)
    blocks = -(-shape.channels // block)
    head = (shape.out, *shape.output, blocks, len(taps), x_block, x_row, y_block, y_row)
    requantization = (numbers.y_zero, numbers.low, numbers.high, int(magic))
    arrays = (taps, weights, starts, counts, bias, scale, x, y)
    buffers = tuple(np.ascontiguousarray(a).tobytes() for a in arrays)
    return Case(
        f"{shape} magic={magic}", kernel, (*head, *requantization, *ranges, 0, y_at), buffers, expected.reshape(-1)
    )


def _input(rng: np.random.Generator, shape: Shape, numbers: Numbers, block: int) -> tuple[Int8, int, int]:
    """The padded plane in blocks, in phases where there is a stride, with slack; bytes of a block and of a row."""
    pad = ((0, 0), (shape.padding,) * 2, (shape.padding,) * 2)
    plane = np.pad(numbers.x, pad, constant_values=numbers.x_zero)
    height, width = pack.phase_plane(shape.plane, shape.stride)
    sy, sx = shape.stride
    plane = np.pad(plane, ((0, 0), (0, height * sy - plane.shape[1]), (0, width * sx - plane.shape[2])))
    blocked = to_blocked(plane, block, rng)
    phases = blocked.reshape(len(blocked), height, sy, width, sx, block).transpose(0, 2, 4, 1, 3, 5)
    slack = rng.integers(-128, 128, pack.SLACK, dtype=np.int8)
    x = np.concatenate([np.ascontiguousarray(phases).reshape(-1), slack])
    return x, sy * sx * height * width * block, width * block


def _range(rng: np.random.Generator, shape: Shape) -> tuple[int, int, int, int]:
    pixels, groups = int(np.prod(shape.output)), -(-shape.out // pack.GROUP)
    if not shape.part:
        return 0, pixels, 0, groups
    begin, first = int(rng.integers(0, pixels)), int(rng.integers(0, groups))
    return begin, int(rng.integers(begin, pixels + 1)), first, int(rng.integers(first, groups + 1))


def _output(
    shape: Shape, numbers: Numbers, block: int, ranges: tuple[int, int, int, int]
) -> tuple[Int8, Int8, int, int, int]:
    """The output before and after, bytes of a block and of a row, and where its first pixel is."""
    height, width = shape.output
    blocks = -(-shape.out // block)
    acc = np.zeros((blocks * block, height * width), np.int64)
    acc[: shape.out] = numbers.accumulators(shape).reshape(shape.out, -1)
    scale = np.zeros(blocks * block, np.float32)
    scale[: shape.out] = numbers.scale
    q = requantize(acc.T, scale, numbers.y_zero, numbers.low, numbers.high)
    q = q.reshape(height * width, blocks, block).transpose(1, 0, 2)
    asked = np.zeros((blocks, height * width, 1), bool)
    per_group = pack.GROUP // block
    asked[ranges[2] * per_group : ranges[3] * per_group, ranges[0] : ranges[1]] = True
    border = shape.border
    before = np.full((blocks, height + 2 * border, width + 2 * border, block), UNTOUCHED, np.int8)
    after = before.copy()
    inner = after[:, border : border + height, border : border + width]
    inner[:] = np.where(asked, q, UNTOUCHED).reshape(inner.shape)
    row = (width + 2 * border) * block
    return before, after, (height + 2 * border) * row, row, border * (row + block)
