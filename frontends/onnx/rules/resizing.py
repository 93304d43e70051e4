"""Rules for resizing and sampling images, where torch computes exactly what ONNX asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..call import Call
from ..registry import rule
from ..values import Size, Value
from .convolution import spatial

aten = torch.ops.aten

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

_PLAIN: dict[str, str | int | float] = {
    "antialias": 0,
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "keep_aspect_ratio_policy": "stretch",
}
"""Attributes of Resize with the one value that torch computes."""

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
    mode = op.attr_str("mode", "nearest")
    if mode != "nearest":
        op.refuse("points are taken from the corner of pixels", expected="mode 'nearest'", found=mode)
    x = op.input(0)
    return _nearest(op, x, "asymmetric", "floor", None, _spatial_scales(op, x, scales))


@rule("Resize", since=11)
def resize(op: Call) -> Value:
    x = op.input(0)
    mode, points = op.attr_str("mode", "nearest"), op.attr_str("coordinate_transformation_mode", "half_pixel")
    _refuse_others(op, mode)
    axes = [op.axis(axis, op.rank(x)) for axis in op.attr_ints("axes", range(op.rank(x)))]
    sizes: list[Size] | None = None
    scales: list[float] | None = None
    if op.has(3):
        sizes = _spatial_sizes(op, x, dict(zip(axes, op.sizes(3), strict=True)))
    else:
        given = dict(zip(axes, op.known(2).double().tolist(), strict=True))
        scales = _spatial_scales(op, x, [given.get(axis, 1.0) for axis in range(op.rank(x))])
    if mode == "nearest":
        return _nearest(op, x, points, op.attr_str("nearest_mode", "round_prefer_floor"), sizes, scales)
    operators = _SMOOTH[mode]
    if points not in _CORNERS:
        op.refuse("torch takes points otherwise", expected=", ".join(_CORNERS), found=points)
    if _CORNERS[points] and scales and not _whole_lengths(op, x, scales):
        op.refuse("torch aligns the corners of whole lengths", expected="sizes, or whole scales", found=scales)
    n = spatial(op, x)
    if n not in operators:
        op.refuse(f"torch has no {mode} resizing of so many axes", expected=sorted(operators), found=n)
    result = op.call(operators[n], x, sizes, _CORNERS[points], scales)
    if points == "pytorch_half_pixel" and 1 in op.shape(result)[2:] and op.shape(result) != op.shape(x):
        op.refuse("torch takes the one point of an axis of size 1 from the middle", expected="half_pixel", found=points)
    return result


def _whole_lengths(op: Call, x: Value, scales: list[float]) -> bool:
    lengths = [
        scale * (size if isinstance(size, int) else 1) for scale, size in zip(scales, op.shape(x)[2:], strict=True)
    ]
    return all(length == int(length) for length in lengths)


def _refuse_others(op: Call, mode: str) -> None:
    if mode not in ("nearest", *_SMOOTH):
        op.refuse("the mode is not known", expected="nearest, linear or cubic", found=mode)
    for name, plain in _PLAIN.items():
        if not op.has_attr(name) or (name == "cubic_coeff_a" and mode != "cubic"):
            continue
        readers: dict[type, Callable[[str], str | int | float]]
        readers = {str: op.attr_str, int: op.attr_int, float: op.attr_float}
        found = readers[type(plain)](name)
        if found != plain:
            op.refuse(f"torch has no such {name}", expected=plain, found=found)


def _nearest(
    op: Call, x: Value, points: str, rounding: str, sizes: list[Size] | None, scales: list[float] | None
) -> Value:
    """torch rounds down, or takes the pixel in which the middle lies; other ways are the same at whole scales."""
    n = spatial(op, x)
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
    op.refuse(
        "torch takes the nearest point otherwise",
        expected="asymmetric with floor, half_pixel with round_prefer_ceil, or whole scales",
        found=f"{points} with {rounding}",
    )


def _no_ties(op: Call, x: Value, sizes: list[Size] | None, scales: list[float] | None) -> bool:
    """Whether no point lies between two pixels, equally far from both: then either rounding gives the same."""
    for axis, size in enumerate(op.shape(x)[2:]):
        wanted = sizes[axis] if sizes else None
        if not isinstance(size, int) or not (scales or isinstance(wanted, int)):
            return False
        step = 1 / scales[axis] if scales else size / wanted  # type: ignore[operator]  # an int, as asked above
        count = int(size * scales[axis]) if scales else wanted
        if any(((i + 0.5) * step).is_integer() for i in range(count)):  # type: ignore[arg-type]
            return False
    return True


def _spatial_scales(op: Call, x: Value, scales: list[float]) -> list[float]:
    if len(scales) != op.rank(x) or scales[:2] != [1.0, 1.0]:
        op.refuse("torch resizes the axes after the channels", expected="scales 1, 1, ...", found=scales)
    return scales[2:]


def _spatial_sizes(op: Call, x: Value, given: dict[int, Size]) -> list[Size]:
    own = op.shape(x)
    sizes = [given.get(axis, size) for axis, size in enumerate(own)]
    if sizes[:2] != own[:2]:
        op.refuse("torch resizes the axes after the channels", expected=f"sizes {own[:2]} there", found=sizes)
    return sizes[2:]


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
