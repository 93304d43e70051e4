"""Rules for Fourier transforms, as products with matrices of cosines and sines that are worked out at import.

So they are real arithmetic, which every target has: a transform along an axis is a matmul, one of overlapping frames a
convolution whose kernels are the windowed cosines and sines. A complex number is a pair in the last axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..call import Call
from ..registry import rule
from ..values import Known, Value

aten = torch.ops.aten

_LARGEST = 1 << 24
"""Matrices of more numbers than this are not worked out."""


@rule("DFT", since=17)
def dft(op: Call) -> Value:
    """The axis is an attribute before opset 20, and an input since."""
    x = op.input(0)
    rank = op.rank(x)
    stated = op.attr_int("axis", 1) if op.opset < 20 else int(op.known(2).item()) if op.has(2) else -2
    axis = op.axis(stated, rank)
    if rank < 2 or axis == rank - 1 or op.size(x, -1) not in (1, 2):
        op.refuse("the last axis holds the parts of complex numbers", expected="[..., 1] or [..., 2], another axis")
    size = op.static_size(x, axis)
    inverse, onesided = bool(op.attr_int("inverse", 0)), bool(op.attr_int("onesided", 0))
    half = inverse and onesided
    length = int(op.known(1).item()) if op.has(1) else 2 * (size - 1) if half else size
    needed = length // 2 + 1 if half else length
    parts = [_last(op, op.call(aten.select.int, x, -1, part), axis) for part in range(op.static_size(x, rank - 1))]
    parts = [op.call(aten.slice.Tensor, part, -1, 0, needed) if needed < size else part for part in parts]
    cosines, sines = _waves(op, min(size, needed), length // 2 + 1 if onesided and not inverse else length, length)
    if half:
        cosines, sines = _mirrored(cosines, length), _mirrored(sines, length)
    if inverse:
        cosines, sines = cosines / length, -sines / length
    real = _combined(op, parts, cosines, sines)
    results = [real] if half else [real, _combined(op, parts, -sines, cosines)]
    return op.call(aten.stack.default, [_last(op, result, axis) for result in results], -1)


def _last(op: Call, value: Value, axis: int) -> Value:
    """The axis in the last place, and the other way round."""
    rank = op.rank(value)
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    return value if axis == rank - 1 else op.call(aten.permute.default, value, order)


def _waves(op: Call, rows: int, columns: int, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi t k / length, in float64; products are taken modulo the length first, which is exact."""
    if length < 1 or rows * columns > _LARGEST:
        op.refuse("a Fourier transform of such a length is not taken", expected=f"1 to {math.isqrt(_LARGEST)}")
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % length
    angles = turns.double() * (2 * math.pi / length)
    return torch.cos(angles), torch.sin(angles)


def _mirrored(waves: Tensor, length: int) -> Tensor:
    """Each frequency but the first, and the middle one, stands for its mirror image too."""
    counts = torch.full((waves.shape[0], 1), 2.0, dtype=torch.float64)
    counts[0] = 1
    counts[length // 2 + (length % 2) :] = 1
    return waves * counts


def _combined(op: Call, parts: list[Value], first: Tensor, second: Tensor) -> Value:
    """parts[0] @ first + parts[1] @ second."""
    matrices = [Known(matrix.to(op.dtype(parts[0]))) for matrix in (first, second)]
    products = [op.call(aten.matmul.default, part, matrix) for part, matrix in zip(parts, matrices, strict=False)]
    return products[0] if len(products) == 1 else op.call(aten.add.Tensor, *products)


@rule("STFT", since=17)
def stft(op: Call) -> Value:
    """[batch, length, 1 or 2] -> [batch, frames, frequencies, 2]: a convolution by windowed waves."""
    signal, window = op.input(0), op.known(2).double() if op.has(2) else None
    step = int(op.known(1).item())
    length = int(op.known(3).item()) if op.has(3) else len(window) if window is not None else op.static_size(signal, 1)
    if op.rank(signal) != 3 or step < 1 or (window is not None and window.shape != (length,)):
        op.refuse("frames that do not fit their window", expected=f"a step above 0 and a window [{length}]")
    onesided = bool(op.attr_int("onesided", 1)) and op.static_size(signal, 2) == 1
    cosines, sines = _waves(op, length, length // 2 + 1 if onesided else length, length)
    weights = torch.ones(length, 1, dtype=torch.float64) if window is None else window[:, None]
    cosines, sines = (cosines * weights).t(), (sines * weights).t()
    kernels = [torch.cat([cosines, -sines])] + [torch.cat([sines, cosines])] * (op.static_size(signal, 2) - 1)
    kernel = Known(torch.stack(kernels, 1).to(op.dtype(signal)))
    waves = op.call(aten.conv1d.default, op.call(aten.permute.default, signal, [0, 2, 1]), kernel, None, [step])
    sizes = [op.size(waves, 0), 2, len(cosines), op.size(waves, 2)]
    return op.call(aten.permute.default, op.call(aten.reshape.default, waves, sizes), [0, 3, 2, 1])


@rule("MelWeightMatrix", since=17)
def mel_weight_matrix(op: Call) -> Value:
    """Triangles on the mel scale, [dft_length // 2 + 1, bands]: a constant."""
    bands, length, rate = (int(op.known(index).item()) for index in range(3))
    low, high = (float(op.known(index).item()) for index in (3, 4))
    bins = length // 2 + 1
    if min(bands, length, rate) < 1 or bins * bands > _LARGEST:
        op.refuse("a mel matrix of impossible sizes", expected="bands, length and rate above 0", found=[bands, length])
    lowest, highest = (2595 * math.log10(1 + hertz / 700) for hertz in (low, high))
    steps = torch.arange(bands + 2, dtype=torch.float64) * ((highest - lowest) / (bands + 2)) + lowest
    hertz = 700 * (10 ** (steps / 2595) - 1)
    places = torch.floor((length + 1) * hertz / rate)[None]
    start, middle, end = places[:, :-2], places[:, 1:-1], places[:, 2:]
    bin_ = torch.arange(bins, dtype=torch.float64)[:, None]
    rising = torch.where(middle == start, (bin_ == middle).double(), (bin_ - start) / (middle - start))
    falling = (end - bin_) / (end - middle)
    inside = (bin_ >= start) & (bin_ < end)
    values = torch.where(bin_ <= middle, rising, falling)
    dtype = op.attr_dtype("output_datatype", 1)
    return Known(torch.where(inside | (bin_ == middle), values, torch.zeros(())).to(dtype))
