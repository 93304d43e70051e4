"""Forms of an integer convolution that ONNX Runtime runs faster. The integers that come out are the same.

ONNX Runtime has two ways to compute a convolution of uint8 and int8. One gathers nothing and takes input channels four
by four; it wants weights with zero point 0. The other gathers patches and multiplies matrices, in tiles where the CPU
has AMX, and is chosen for what the first one does not take.

    conv(x[N, C, H, W], stride s)  ->  conv(blocks(x)[N, s*s*C, H/s, W/s], stride 1)        C not a multiple of 4
    weight, zero point 0           ->  weight - 1, zero point -1                            long sums, on AMX
    conv(pad(x, 0))                ->  conv(x, larger padding)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.passes.arguments import argument, padded_with, spatial

from .builder import Builder, Value

aten = torch.ops.aten
CONVOLUTION = aten.conv2d.default

LANES = 4
"""Input channels that the symmetric kernel multiplies at once."""
_MOST_PIXELS = 16
"""In a block: gathering larger ones costs more than the kernel gains (16x16: 0.85 of the speed)."""
_FEWEST_OUTPUTS = 16

SUMMANDS = {True: 320, False: 512}
"""From so many summands a product in tiles is faster than the symmetric kernel: pointwise, and where patches are
gathered. Measured on AMX: 1.2 to 1.8 times from there on, 0.7 at 128."""
OUTPUTS = {True: 64, False: 128}
"""And from so many output channels, over which gathering is spread."""


@dataclass(frozen=True)
class Blocks:
    """A strided convolution on blocks of pixels.

    stored: the weight, a constant on a grid. block: rows and columns of pixels in one, which are the strides. lead:
    zeros before the kernel, so that it begins with a block. taps, pads: the kernel's size, and the padding at the top,
    left, bottom and right, in blocks.
    """

    stored: fx.Node
    block: tuple[int, int]
    lead: tuple[int, int]
    taps: tuple[int, int]
    pads: tuple[int, int, int, int]

    def weight(self, weight: Tensor) -> Tensor:
        """[O, C, kh, kw] as [O, rows * columns * C, taps, taps], zeros around it."""
        (rows, columns), (down, across) = self.block, self.taps
        before, room = self.lead, (down * rows, columns * across)
        after = [whole - size - lead for whole, size, lead in zip(room, weight.shape[2:], before, strict=True)]
        padded = F.pad(weight, (before[1], after[1], before[0], after[0]))
        split = padded.reshape(*weight.shape[:2], down, rows, across, columns)
        return split.permute(0, 3, 5, 1, 2, 4).reshape(weight.shape[0], -1, down, across).contiguous()

    def source(self, b: Builder, x: Value) -> str:
        """[N, C, H, W] as [N, rows * columns * C, H / rows, W / columns], moved as integers where `x` has them.

        ONNX Runtime computes with channels last, so the last transposition meets its own, and both vanish.
        """
        channels, height, width = x.shape[1:]
        (rows, columns), stored = self.block, b.stored.get(x)
        last = b.op("Transpose", stored.steps if stored else x, perm=[0, 2, 3, 1])
        cut = b.op("Reshape", last, b.ints(0, height // rows, rows, width // columns, columns * channels))
        sizes = b.ints(0, height // rows, width // columns, rows * columns * channels)
        blocks = b.op("Reshape", b.op("Transpose", cut, perm=[0, 1, 3, 2, 4]), sizes)
        first = b.op("Transpose", blocks, perm=[0, 3, 1, 2])
        return b.dequantize(first, stored) if stored else first


@dataclass(frozen=True)
class Padded:
    """What a convolution reads, and the zeros around it: at the top, left, bottom and right."""

    source: fx.Node
    pads: tuple[int, int, int, int]


def padded(node: fx.Node) -> Padded:
    """The source of a convolution over two dimensions with constant padding, before a pad with zeros that it reads."""
    source = argument(node, "input")
    rows, columns = spatial(node, "padding", 2)
    sizes = _zeros_around(source)
    if sizes is None:
        return Padded(source, (rows, columns, rows, columns))
    left, right, top, bottom = sizes
    pads = (rows + top, columns + left, rows + bottom, columns + right)
    return Padded(argument(source, "self"), pads)


def _zeros_around(node: fx.Node) -> list[int] | None:
    """What a node pads its input with in two dimensions, at the left, right, top and bottom; None where it does not."""
    if padded_with(node) != 0:
        return None
    sizes = list(argument(node, "pad"))
    sizes += [0] * (4 - len(sizes))
    known = all(isinstance(size, int) and size >= 0 for size in sizes)
    return sizes[:4] if known and not any(sizes[4:]) else None


def blocks_of_pixels(program: Program, node: fx.Node) -> Blocks | None:
    """How the convolution is done on blocks; None where it is not one of few channels with a stride, or has no need."""
    given, weight = padded(node), argument(node, "weight")
    image, (outputs, channels, *kernel) = given.source.meta[KEY].shape, weight.meta[KEY].shape
    stride, dilation = (spatial(node, name, 2) for name in ("stride", "dilation"))
    pixels = math.prod(stride)
    if dilation != [1, 1] or not 1 < pixels <= _MOST_PIXELS or argument(node, "groups") != 1:
        return None
    few = channels % LANES and not channels * pixels % LANES
    if not few or outputs < _FEWEST_OUTPUTS or len(image) != 4 or not _is_stored(program, weight):
        return None
    begins, ends = given.pads[:2], given.pads[2:]
    sides = [_side(*side) for side in zip(image[2:], kernel, stride, begins, ends, strict=True)]
    if sides[0] is None or sides[1] is None:
        return None
    (top_lead, down, top, bottom), (left_lead, across, left, right) = sides[0], sides[1]
    block = (stride[0], stride[1])
    return Blocks(weight, block, (top_lead, left_lead), (down, across), (top, left, bottom, right))


def _side(size: object, kernel: int, stride: int, begin: int, end: int) -> tuple[int, int, int, int] | None:
    """Lead, taps, and blocks of padding before and after, along one dimension; None where blocks do not fit."""
    if not isinstance(size, int) or size % stride:
        return None
    before = -(-begin // stride)
    lead = before * stride - begin
    taps = -(-(kernel + lead) // stride)
    after = (size + begin + end - kernel) // stride + taps - size // stride - before
    return None if after < 0 else (lead, taps, before, after)


def _is_stored(program: Program, weight: fx.Node) -> bool:
    """Whether a weight is a constant on a grid with zero point 0 in every channel of the output."""
    if weight.target is not FAKE_QUANTIZE or weight.args[3] not in (0, None):
        return False
    zeros = program.constant(weight.args[2])
    return program.constant(weight.args[0]) is not None and zeros is not None and not bool(zeros.any())


def wants_products(program: Program, weight: fx.Node) -> bool:
    """Whether every convolution that reads the weight has sums long enough for products in tiles to be faster."""
    return _is_stored(program, weight) and bool(weight.users) and all(map(_has_long_sums, weight.users))


def _has_long_sums(node: fx.Node) -> bool:
    if node.target is not CONVOLUTION or argument(node, "groups") != 1:
        return False
    outputs, *summands = argument(node, "weight").meta[KEY].shape
    pointwise = set(summands[1:]) == {1} and set(spatial(node, "stride", 2)) == {1}
    return bool(math.prod(summands) >= SUMMANDS[pointwise] and outputs >= OUTPUTS[pointwise])
