"""Rules for pooling and padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .builder import Builder, Value
from .registry import Refusal, rule

aten = torch.ops.aten
Sizes = int | Sequence[int]


def _spread(value: Sizes, count: int) -> list[int]:
    """ATen lets one number stand for all spatial dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _window(
    b: Builder, x: Value, kernel: Sizes, stride: Sizes, padding: Sizes, ceil_mode: bool, dilation: Sizes = 1
) -> dict[str, Any]:
    spatial = x.rank - 2
    if spatial < 1 or len(_spread(kernel, spatial)) != spatial:
        raise Refusal("pools a tensor without a batch dimension", "unsqueeze(0) before, squeeze(0) after")
    sizes = _spread(kernel, spatial)
    steps = _spread(stride, spatial) if stride or isinstance(stride, int) else sizes
    pads = _spread(padding, spatial)
    reach = [d * (k - 1) + 1 for d, k in zip(_spread(dilation, spatial), sizes, strict=True)]
    rounded = ceil_mode and _rounds_up(b, x, reach, steps, pads)
    return {"kernel_shape": sizes, "strides": steps, "pads": pads * 2, "ceil_mode": int(rounded)}


def _rounds_up(b: Builder, x: Value, reach: list[int], steps: list[int], pads: list[int]) -> bool:
    """Whether ONNX's ceil_mode gives ATen's sizes. ATen drops a last window that lies in the padding, ONNX does not."""
    sizes, results = x.shape[2:], b.result.shape[2:]
    if not all(isinstance(size, int) for size in sizes):
        if any(pads):
            raise Refusal("rounds sizes up that change from call to call, with padding", "ceil_mode=False")
        return True
    spans = [size + 2 * pad - span for size, pad, span in zip(sizes, pads, reach, strict=True)]
    if all(r == span // step + 1 for r, span, step in zip(results, spans, steps, strict=True)):
        return False
    if all(r == -(-span // step) + 1 for r, span, step in zip(results, spans, steps, strict=True)):
        return True
    raise Refusal("rounds one size up and drops the last window of another", "ceil_mode=False")


@rule(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def max_pool(
    b: Builder, x: Value, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> str:
    window = _window(b, x, kernel, stride, padding, ceil_mode, dilation)
    return b.move("MaxPool", x, dilations=_spread(dilation, x.rank - 2), **window)


@rule(aten.avg_pool1d.default)
def avg_pool1d(
    b: Builder, x: Value, kernel: Sizes, stride: Sizes, padding: Sizes, ceil_mode: bool, count_include_pad: bool
) -> str:
    return _average(b, x, count_include_pad, _window(b, x, kernel, stride, padding, ceil_mode))


def _average(b: Builder, x: Value, counts_padding: bool, window: dict[str, Any]) -> str:
    """ONNX Runtime's integer kernel divides by the whole window where ceil_mode lets one reach beyond the padding.

    It is right where padding is not counted, so what is counted is padded before.
    """
    if not (counts_padding and window["ceil_mode"]):
        return b.op("AveragePool", x, count_include_pad=int(counts_padding), **window)
    amounts = [amount for before in reversed(window["pads"][: x.rank - 2]) for amount in (before, before)]
    padded = pad(b, x, amounts, "constant", None) if any(amounts) else x
    return b.op("AveragePool", padded, count_include_pad=0, **{**window, "pads": [0] * len(amounts)})


@rule(aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool2d(
    b: Builder,
    x: Value,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> str:
    window = _window(b, x, kernel, stride, padding, ceil_mode)
    if divisor is None:
        return _average(b, x, count_include_pad, window)
    if ceil_mode:
        raise Refusal("average pooling with ceil_mode and a divisor of its own")
    area = math.prod(window["kernel_shape"])
    return b.op("Mul", b.op("AveragePool", x, count_include_pad=1, **window), b.number(area / divisor, x.dtype))


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def adaptive_avg_pool(b: Builder, x: Value, output: Sequence[int]) -> str:
    """Global, or windows of equal size where the output's sizes divide the input's."""
    spatial = len(output)
    if x.rank != spatial + 2:
        raise Refusal("pools a tensor without a batch dimension", "unsqueeze(0) before, squeeze(0) after")
    if all(size == 1 for size in output):
        return b.op("GlobalAveragePool", x)
    sizes = x.shape[2:]
    if not all(isinstance(size, int) for size in sizes):
        raise Refusal(f"pools sizes that change from call to call to {list(output)}", "trace with fixed sizes")
    if any(size % wanted for size, wanted in zip(sizes, output, strict=True)):
        return _uneven_means(b, x, sizes, output)
    window = [s // o for s, o in zip(sizes, output, strict=True)]
    return b.op("AveragePool", x, kernel_shape=window, strides=window)


def _uneven_means(b: Builder, x: Value, sizes: Sequence[int], output: Sequence[int]) -> str:
    """Means over windows that differ in size, as products with matrices of their shares, an axis at a time."""
    if len(sizes) > 2:
        raise Refusal(f"pools {list(sizes)} to {list(output)}, whose windows differ in size", "avg_pool3d")
    result: str = b.op("MatMul", x, b.constant(_shares(sizes[-1], output[-1]).to(x.dtype).T.contiguous()))
    if len(sizes) == 2:
        result = b.op("MatMul", b.constant(_shares(sizes[0], output[0]).to(x.dtype)), result)
    return result


def _shares(size: int, wanted: int) -> Tensor:
    """float64[wanted, size]: what each value counts in each window, from floor(i * size / wanted) up to the next."""
    shares = torch.zeros(wanted, size, dtype=torch.float64)
    for place in range(wanted):
        first, last = place * size // wanted, -(-(place + 1) * size // wanted)
        shares[place, first:last] = 1 / (last - first)
    return shares


# -- padding ---------------------------------------------------------------------------------------------------------

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@rule(aten.pad.default)
def pad(b: Builder, x: Value, pads: Sequence[Any], mode: str, value: float | None) -> str:
    """ATen lists (before, after) from the last dimension on, ONNX all befores, then all afters.

    A value on a grid is padded as it is stored, zero being the zero point: runtimes have no such kernel otherwise.
    """
    amounts = _amounts(b, x, pads)
    if mode != "constant":
        return b.op("Pad", x, amounts, mode=_MODES[mode])
    stored = b.moves_as_stored(x) if not value else None
    if stored is not None:
        return b.dequantize(b.op("Pad", stored.steps, amounts, stored.zero_point), stored)
    return b.op("Pad", x, amounts, b.operand(value or 0, x.dtype))


def _amounts(b: Builder, x: Value, pads: Sequence[Any]) -> str:
    missing: list[Any] = [0] * (x.rank - len(pads) // 2)
    return b.sizes([*missing, *reversed(pads[::2]), *missing, *reversed(pads[1::2])])


@rule(aten.constant_pad_nd.default)
def constant_pad(b: Builder, x: Value, pads: Sequence[Any], value: Any) -> str:
    return pad(b, x, pads, "constant", value)


@rule(aten.reflection_pad1d.default, aten.reflection_pad2d.default)
def reflection_pad(b: Builder, x: Value, pads: Sequence[Any]) -> str:
    return pad(b, x, pads, "reflect", None)


@rule(aten.replication_pad1d.default, aten.replication_pad2d.default)
def replication_pad(b: Builder, x: Value, pads: Sequence[Any]) -> str:
    return pad(b, x, pads, "replicate", None)
