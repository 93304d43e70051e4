"""Rules for resizing and sampling images: by torch's operators where they compute what ONNX asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from ..call import Call
from ..registry import rule
from ..values import Size, Value
from .quantization import on_stored
from .resampling import Way, resampled

aten = torch.ops.aten

_MOST_POINTS = 1 << 20

_NEAREST = {1: aten.upsample_nearest1d.vec, 2: aten.upsample_nearest2d.vec, 3: aten.upsample_nearest3d.vec}
_CENTRED = {
    1: aten._upsample_nearest_exact1d.vec,
    2: aten._upsample_nearest_exact2d.vec,
    3: aten._upsample_nearest_exact3d.vec,
}
_LINEAR = {1: aten.upsample_linear1d.vec, 2: aten.upsample_bilinear2d.vec, 3: aten.upsample_trilinear3d.vec}
_CUBIC = {2: aten.upsample_bicubic2d.vec}
_SMOOTH = {"linear": _LINEAR, "cubic": _CUBIC}
_CORNERS = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}
"""Where ONNX takes the points -> torch's align_corners."""

_POLICIES: dict[str, Callable[[Iterable[float]], float]] = {"not_larger": min, "not_smaller": max}

_INTERPOLATIONS = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
_BORDERS = {"zeros": 0, "border": 1, "reflection": 2}


@rule("Upsample", until=6)
def _first_upsample(op: Call) -> Value:
    op.refuse("the form of opset 1 is not taken", expected="opset 7 or later")


@rule("Upsample", since=7, until=8)
def early_upsample(op: Call) -> Value:
    return _old(op, op.attr_floats("scales"))


@rule("Upsample", since=9, until=9)
@rule("Resize", until=10)
def upsample(op: Call) -> Value:
    return _old(op, op.known(1).double().tolist())


def _old(op: Call, scales: list[float]) -> Value:
    """Points are taken from the corner of pixels."""
    way = Way(op.attr_str("mode", "nearest"), "asymmetric", "floor")
    return _resized(op, way, None, scales)


@rule("Resize", since=11)
def resize(op: Call) -> Value:
    """Integers on a grid stay on it where each point is one of theirs."""
    return _nearest_point(op) if op.attr_str("mode", "nearest") == "nearest" else _resize(op)  # type: ignore[return-value]  # one


def _resize(op: Call) -> Value:
    x = op.input(0)
    way = Way(
        op.attr_str("mode", "nearest"),
        op.attr_str("coordinate_transformation_mode", "half_pixel"),
        op.attr_str("nearest_mode", "round_prefer_floor"),
        op.attr_float("cubic_coeff_a", -0.75),
        bool(op.attr_int("antialias", 0)),
        bool(op.attr_int("exclude_outside", 0)),
        op.attr_float("extrapolation_value", 0.0),
    )
    axes = [op.axis(axis, op.rank(x)) for axis in op.attr_ints("axes", range(op.rank(x)))]
    if not op.has(3):
        given = dict(zip(axes, op.known(2).double().tolist(), strict=True))
        return _resized(op, way, None, [given.get(axis, 1.0) for axis in range(op.rank(x))])
    wanted = _kept_aspect(op, x, dict(zip(axes, op.sizes(3), strict=True)))
    return _resized(op, way, [wanted.get(axis, size) for axis, size in enumerate(op.shape(x))], None)


_nearest_point = on_stored(_resize)


def _kept_aspect(op: Call, x: Value, wanted: dict[int, Size]) -> dict[int, Size]:
    """The wanted sizes, or those of one scale for all that are as near."""
    policy = op.attr_str("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return wanted
    if policy not in _POLICIES:
        op.refuse("the policy is not known", expected=f"stretch, {', '.join(_POLICIES)}", found=policy)
    own = {axis: op.size(x, axis) for axis in wanted}
    if not all(isinstance(size, int) for size in (*own.values(), *wanted.values())):
        op.refuse("an aspect ratio of sizes that change", expected="constant sizes")
    scale = _POLICIES[policy](int(str(size)) / int(str(own[axis])) for axis, size in wanted.items())
    return {axis: math.floor(scale * int(str(size)) + 0.5) for axis, size in own.items()}


def _resized(op: Call, way: Way, sizes: list[Size] | None, scales: list[float] | None) -> Value:
    """By torch's operator where it computes the same, else by indices and weights that are worked out here."""
    x = op.input(0)
    way.check(op)
    spatial_axes = op.rank(x) - 2
    if spatial_axes in _NEAREST and way.is_plain:
        whole = scales[:2] == [1.0, 1.0] if scales else bool(sizes) and sizes[:2] == op.shape(x)[:2]  # type: ignore[index]
        tail = sizes[2:] if sizes else None, scales[2:] if scales else None
        found = (_nearest if way.mode == "nearest" else _smooth)(op, x, way, *tail) if whole else None
        if found is not None:
            return found
    own = op.static_shape(x)
    lengths = sizes or [math.floor(size * scale) for size, scale in zip(own, scales or [], strict=True)]
    if not all(isinstance(length, int) for length in lengths):
        op.refuse("torch takes these points otherwise where sizes change", expected="constant sizes", found=way)
    factors = scales or [int(str(length)) / size for length, size in zip(lengths, own, strict=True)]
    return resampled(op, x, way, [int(str(length)) for length in lengths], factors)


def _smooth(op: Call, x: Value, way: Way, sizes: list[Size] | None, scales: list[float] | None) -> Value | None:
    n = op.rank(x) - 2
    if way.points not in _CORNERS or n not in _SMOOTH[way.mode] or not op.dtype(x).is_floating_point:
        return None
    if _CORNERS[way.points] and scales and not _whole_lengths(op, x, scales):
        return None
    if way.points == "pytorch_half_pixel" and _has_one(op, x, sizes, scales):
        return None
    return op.call(_SMOOTH[way.mode][n], x, sizes, _CORNERS[way.points], scales)


def _has_one(op: Call, x: Value, sizes: list[Size] | None, scales: list[float] | None) -> bool:
    """Whether an axis of the result may be of size 1, whose point torch takes from the middle."""
    own = op.shape(x)[2:]
    if sizes is not None:
        both = zip(sizes, own, strict=True)
        return any(not isinstance(size, int) or (size == 1 and mine != 1) for size, mine in both)
    pairs = zip(own, scales or [], strict=True)
    return any(not isinstance(size, int) or (math.floor(size * scale) == 1 and scale != 1) for size, scale in pairs)


def _whole_lengths(op: Call, x: Value, scales: list[float]) -> bool:
    lengths = [
        scale * (size if isinstance(size, int) else 1) for scale, size in zip(scales, op.shape(x)[2:], strict=True)
    ]
    return all(length == int(length) for length in lengths)


def _nearest(op: Call, x: Value, way: Way, sizes: list[Size] | None, scales: list[float] | None) -> Value | None:
    """torch rounds down, or takes the pixel in which the middle lies; other ways are the same at whole scales."""
    n, points, rounding = op.rank(x) - 2, way.points, way.rounding
    whole = scales is not None and all(scale == int(scale) for scale in scales)
    if points == "asymmetric" and rounding == "floor":
        return op.call(_NEAREST[n], x, sizes, scales)
    centred = points in ("half_pixel", "pytorch_half_pixel")
    if centred and whole and rounding in ("round_prefer_floor", "round_prefer_ceil"):
        return op.call(_NEAREST[n], x, sizes, scales)
    if points == "half_pixel" and (
        rounding == "round_prefer_ceil" or (rounding == "round_prefer_floor" and _no_ties(op, x, sizes, scales))
    ):
        return op.call(_CENTRED[n], x, sizes, scales)
    return None


def _no_ties(op: Call, x: Value, sizes: list[Size] | None, scales: list[float] | None) -> bool:
    """Whether no point lies between two pixels, equally far from both: then either rounding gives the same."""
    for axis, size in enumerate(op.shape(x)[2:]):
        wanted = sizes[axis] if sizes else None
        if not isinstance(size, int) or not (scales or isinstance(wanted, int)):
            return False
        step = 1 / scales[axis] if scales else size / wanted  # type: ignore[operator]  # an int, as asked above
        count = int(size * scales[axis]) if scales else wanted
        if count > _MOST_POINTS:  # type: ignore[operator]  # an int, as asked above
            return False
        if any(((i + 0.5) * step).is_integer() for i in range(count)):  # type: ignore[arg-type]
            return False
    return True


@rule("GridSample")
def grid_sample(op: Call) -> Value:
    mode, border = op.attr_str("mode", "linear"), op.attr_str("padding_mode", "zeros")
    if mode not in _INTERPOLATIONS or border not in _BORDERS:
        op.refuse("the mode is not known", found=f"{mode}, {border}")
    align = bool(op.attr_int("align_corners", 0))
    return op.call(aten.grid_sampler.default, *op.inputs, _INTERPOLATIONS[mode], _BORDERS[border], align)


@rule("Col2Im")
def col2im(op: Call) -> Value:
    sizes, kernel = op.sizes(1), op.ints(2)
    if len(kernel) != 2:
        op.refuse("torch has it for 2 axes", found=len(kernel))
    padding = op.attr_ints("pads", [0, 0, 0, 0])
    if padding[:2] != padding[2:]:
        op.refuse("the padding differs before and after", found=padding)
    dilations, strides = op.attr_ints("dilations", [1, 1]), op.attr_ints("strides", [1, 1])
    return op.call(aten.col2im.default, op.input(0), sizes, kernel, dilations, padding[:2], strides)
