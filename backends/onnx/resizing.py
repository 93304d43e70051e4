"""Rules for resizing, for sampling at places that a grid names, and for patches put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .builder import Builder, Value
from .registry import Refusal, add_rule, rule

aten = torch.ops.aten
Factors = Sequence[float] | None

_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_EXACT = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}


def _resize(b: Builder, x: Value, sizes: Sequence[Any] | None, scales: Factors, how: dict[str, Any]) -> str:
    """Nearest values stay on their grid; those between others are on none."""
    make = b.move if how["mode"] == "nearest" else b.op
    if scales:
        return make("Resize", x, None, b.constant(torch.tensor([1.0, 1.0, *scales])), None, **how)
    assert sizes is not None
    return make("Resize", x, None, None, b.op("Concat", b.shape(x, 0, 2), b.sizes(sizes), axis=0), **how)


def _smooth(mode: str, align_corners: bool, antialias: bool) -> dict[str, Any]:
    """PyTorch's points are half_pixel also where the result is one pixel wide."""
    coordinates = "align_corners" if align_corners else "half_pixel"
    cubic = {"cubic_coeff_a": -0.5 if antialias else -0.75} if mode == "cubic" else {}
    narrowed = {"antialias": 1, "exclude_outside": 1} if antialias else {}
    return {"mode": mode, "coordinate_transformation_mode": coordinates, **narrowed, **cubic}


def _nearest_rules(how: dict[str, Any]) -> tuple[Callable[..., str], Callable[..., str]]:
    def vector(b: Builder, x: Value, sizes: Sequence[Any] | None, scales: Factors) -> str:
        return _resize(b, x, sizes, scales, how)

    def flat(b: Builder, x: Value, sizes: Sequence[Any], height: float | None, width: float | None) -> str:
        return _resize(b, x, sizes, [height, width] if height and width else None, how)

    return vector, flat


def _smooth_rules(mode: str, *, antialias: bool = False) -> tuple[Callable[..., str], Callable[..., str]]:
    def vector(b: Builder, x: Value, sizes: Sequence[Any] | None, align_corners: bool, scales: Factors) -> str:
        return _resize(b, x, sizes, scales, _smooth(mode, align_corners, antialias))

    def flat(
        b: Builder, x: Value, sizes: Sequence[Any], align_corners: bool, height: float | None, width: float | None
    ) -> str:
        scales = [height, width] if height and width else None
        return _resize(b, x, sizes, scales, _smooth(mode, align_corners, antialias))

    return vector, flat


_VECTORS: tuple[tuple[tuple[Callable[..., str], Callable[..., str]], tuple[Any, ...], Any], ...] = (
    (
        _nearest_rules(_NEAREST),
        (aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec),
        aten.upsample_nearest2d.default,
    ),
    (
        _nearest_rules(_EXACT),
        (aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec),
        aten._upsample_nearest_exact2d.default,
    ),
    (
        _smooth_rules("linear"),
        (aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec),
        aten.upsample_bilinear2d.default,
    ),
    (_smooth_rules("cubic"), (aten.upsample_bicubic2d.vec,), aten.upsample_bicubic2d.default),
    (
        _smooth_rules("linear", antialias=True),
        (aten._upsample_bilinear2d_aa.vec,),
        aten._upsample_bilinear2d_aa.default,
    ),
    (_smooth_rules("cubic", antialias=True), (aten._upsample_bicubic2d_aa.vec,), aten._upsample_bicubic2d_aa.default),
)

for (_vector, _flat), _overloads, _of_two_axes in _VECTORS:
    for _overload in _overloads:
        add_rule(_overload, _vector)
    add_rule(_of_two_axes, _flat)


_SAMPLING = (("linear", "bilinear"), ("nearest", "nearest"), ("cubic", "bicubic"))
"""PyTorch's numbers of the modes -> ONNX's names from opset 20 on, and before."""
_PADDING = ("zeros", "border", "reflection")
_RENAMED = 20


@rule(aten.grid_sampler.default)
def grid_sampler(b: Builder, x: Value, grid: Value, mode: int, padding: int, align_corners: bool) -> str:
    before = b.options.opset < _RENAMED
    if before and x.rank != 4:
        raise Refusal("samples volumes, which ONNX has from opset 20 on", f"opset={_RENAMED}")
    names = {"mode": _SAMPLING[mode][before], "padding_mode": _PADDING[padding]}
    return b.op("GridSample", x, grid, align_corners=int(align_corners), **names)


@rule(aten.col2im.default)
def col2im(
    b: Builder,
    x: Value,
    output: Sequence[Any],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> str:
    """Patches added up where they overlap."""
    if x.rank != 3:
        raise Refusal("puts patches together without a batch dimension", "unsqueeze(0) before, squeeze(0) after")
    pads = [*padding, *padding] if len(padding) == 2 else [*padding] * 4
    sizes, window = b.sizes(output), b.ints(*kernel)
    return b.op("Col2Im", x, sizes, window, dilations=list(dilation), pads=pads, strides=list(stride))
