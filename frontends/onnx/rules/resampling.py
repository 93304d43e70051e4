"""Resizing in every way that ONNX has, one axis after another: points, weights and indices are worked out at import.

A point of the result lies at a place between the input's elements. Its value is a weighted sum of those near it, each
weight given by a kernel of the distance; elements beyond an end are those at the end. With antialiasing the kernel is
widened by as much as the axis shrinks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..call import Call
from ..values import Known, Value

aten = torch.ops.aten
Floats = NDArray[np.float64]

_MODES = ("nearest", "linear", "cubic")
_POINTS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
_ROUNDINGS: dict[str, Callable[[Floats], Floats]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
}
_LARGEST = 1 << 24
"""Weights of more numbers than this are not worked out: a file may ask for any size."""

_FEW = 4
"""As many elements or fewer to a point are picked and summed; more are a product with a matrix."""


@dataclass(frozen=True)
class Way:
    """How to resize: Resize's attributes."""

    mode: str
    points: str
    rounding: str
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    outside: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether all that torch has no say in is as torch has it."""
        usual = self.mode != "cubic" or self.cubic == -0.75
        return usual and not self.exclude_outside and (not self.antialias or self.mode == "nearest")

    def check(self, op: Call) -> None:
        """Refuse words that ONNX does not have."""
        known = {"mode": (self.mode, _MODES), "points": (self.points, _POINTS), "rounding": (self.rounding, _ROUNDINGS)}
        for what, (word, words) in known.items():
            if word not in words:
                op.refuse(f"the way of resizing is not known: {what}", expected=", ".join(words), found=word)


def resampled(op: Call, x: Value, way: Way, lengths: list[int], scales: list[float]) -> Value:
    """The input resized along every axis whose length or scale changes."""
    dtype = op.dtype(x)
    if way.mode != "nearest" and not dtype.is_floating_point:
        x = op.cast(x, torch.float32)
    for axis, (length, scale) in enumerate(zip(lengths, scales, strict=True)):
        size = op.static_shape(x)[axis]
        if (length, scale) == (size, 1.0) and way.points != "tf_crop_and_resize":
            continue
        if length * size > _LARGEST:
            op.refuse("resizes an axis that is too long", expected=f"{_LARGEST} weights", found=f"{size} to {length}")
        places = _places(way.points, size, length, scale, _region(op, axis, len(lengths)))
        x = _along(op, x, way, axis, places, scale)
        if way.points == "tf_crop_and_resize":
            x = _outside(op, x, axis, (places < 0) | (places > size - 1), way.outside)
    return op.cast(x, dtype)


def _region(op: Call, axis: int, rank: int) -> tuple[float, float]:
    """What part of an axis the input `roi` names, as shares of it."""
    if op.attr_str("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize":
        return 0.0, 1.0
    axes = [op.axis(given, rank) for given in op.attr_ints("axes", range(rank))]
    region = op.known(1).double().tolist()
    if len(region) != 2 * len(axes):
        op.refuse("roi does not fit the axes", expected=f"{2 * len(axes)} numbers", found=region)
    return (region[axes.index(axis)], region[len(axes) + axes.index(axis)]) if axis in axes else (0.0, 1.0)


def _places(points: str, size: int, length: int, scale: float, region: tuple[float, float]) -> Floats:
    """Where each point of the result lies, counted in elements of the input."""
    index, wanted = np.arange(length, dtype=np.float64), scale * size
    if points == "align_corners":
        return index * ((size - 1) / (wanted - 1) if wanted != 1 else 0.0)
    if points == "asymmetric":
        return index / scale
    if points == "tf_crop_and_resize":
        start, end = region
        if wanted == 1:
            return np.full(length, start * (size - 1) + (end - start) * (size - 1) / 2)
        return start * (size - 1) + index * (end - start) * (size - 1) / (wanted - 1)
    if points == "pytorch_half_pixel" and wanted == 1:
        return np.full(length, -0.5)
    centred = (index + 0.5) / scale - 0.5
    return centred + (size / 2) * (1 - length / wanted) if points == "half_pixel_symmetric" else centred


def _along(op: Call, x: Value, way: Way, axis: int, places: Floats, scale: float) -> Value:
    size = op.static_shape(x)[axis]
    if way.mode == "nearest":
        chosen = np.clip(_ROUNDINGS[way.rounding](places), 0, size - 1).astype(np.int64)
        return op.call(aten.index_select.default, x, axis, Known(torch.from_numpy(chosen)))
    weights = _weights(way, places, size, min(scale, 1.0) if way.antialias else 1.0)
    most = int((weights != 0).sum(1).max(initial=0))
    return _sum(op, x, axis, weights, most) if most <= _FEW else _product(op, x, axis, weights)


def _weights(way: Way, places: Floats, size: int, narrow: float) -> Floats:
    """A row a point: the weight of each element. `narrow` is the inverse of the kernel's width."""
    reach = int(np.ceil((1 if way.mode == "linear" else 2) / narrow)) + 1
    near = np.floor(places).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    distance = np.abs(near - places[:, None]) * narrow
    values = np.maximum(1 - distance, 0) if way.mode == "linear" else _cubic(distance, way.cubic)
    if way.exclude_outside:
        values = np.where((near < 0) | (near >= size), 0, values)
    values = values / values.sum(1, keepdims=True)
    weights = np.zeros((len(places), size))
    rows = np.broadcast_to(np.arange(len(places))[:, None], near.shape)
    np.add.at(weights, (rows, np.clip(near, 0, size - 1)), values)
    return weights


def _cubic(distance: Floats, a: float) -> Floats:
    """Keys' convolution kernel (IEEE Transactions on Acoustics, Speech, and Signal Processing, 1981)."""
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, inner, np.where(distance < 2, outer, 0))


def _sum(op: Call, x: Value, axis: int, weights: Floats, count: int) -> Value:
    order = np.argsort(weights == 0, axis=1, kind="stable")[:, : max(count, 1)]
    total: Value | None = None
    for place in range(order.shape[1]):
        chosen = torch.from_numpy(order[:, place].copy())
        factors = torch.from_numpy(np.take_along_axis(weights, order, 1)[:, place].copy()).to(op.dtype(x))
        shape = [-1 if d == axis else 1 for d in range(op.rank(x))]
        part = op.call(aten.index_select.default, x, axis, Known(chosen))
        part = op.call(aten.mul.Tensor, part, Known(factors.reshape(shape)))
        total = part if total is None else op.call(aten.add.Tensor, total, part)
    assert total is not None, "every point has a weight"
    return total


def _product(op: Call, x: Value, axis: int, weights: Floats) -> Value:
    matrix = Known(torch.from_numpy(weights.T.copy()).to(op.dtype(x)))
    order = [d for d in range(op.rank(x)) if d != axis] + [axis]
    back = [order.index(d) for d in range(op.rank(x))]
    turned = op.call(aten.permute.default, x, order)
    return op.call(aten.permute.default, op.call(aten.matmul.default, turned, matrix), back)


def _outside(op: Call, x: Value, axis: int, beyond: NDArray[np.bool_], value: float) -> Value:
    if not beyond.any():
        return x
    mask = torch.from_numpy(beyond).reshape([-1 if d == axis else 1 for d in range(op.rank(x))])
    return op.call(aten.masked_fill.Scalar, x, Known(mask), value)
