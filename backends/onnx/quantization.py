"""Rules for tersor's own operators: fake-quantize as QuantizeLinear and DequantizeLinear.

A constant is stored as the integers that stand for it: int8, or int4 where its grid is that small. ONNX Runtime
computes with int4 weights in float alone, so a conversion to int8 follows for it, which it does once, on loading.
Weights of convolutions with long sums may be stored one step lower, with zero point -1: see `convolution_forms`.

An activation is quantized and dequantized at run time. ONNX Runtime's kernels for x86 take uint8, so 128 is added to
values and zero points there, which stand for the same numbers; TensorRT takes int8.

A clamp before a grid costs a float operator between a kernel and its requantization. Rounding is monotone, so clamping
after it, at the rounded bounds, gives the same integers; mostly those are the bounds of the type, and nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from tersor.ir.operators import (
    FAKE_QUANTIZE,
    FAKE_QUANTIZE_BIAS,
    OBSERVE,
    along,
    bias_scale,
    quantize_bias,
    quantize_to_grid,
)
from tersor.passes.quantization.roles import Role, clamp_range, role_of

from .builder import Builder, Value
from .convolution_forms import wants_products
from .dtypes import tensor_proto
from .heads import heads_first
from .registry import Refusal, rule

INT4, INT8, FLOAT8 = onnx.TensorProto.INT4, onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN


@rule(OBSERVE)
def observe(b: Builder) -> str:
    raise Refusal("the range of this value is not calibrated", "run Calibrate first, or Quantize, which holds it")


@rule(FAKE_QUANTIZE)
def fake_quantize(
    b: Builder, x: Value, scale: Value, zero_point: Value, axis: int | None, quant_min: int, quant_max: int
) -> str:
    if quant_min < -128 or quant_max > 127:
        raise Refusal(f"a grid of {quant_min}..{quant_max} does not fit 8 bits")
    if x.dtype != torch.float32:
        raise Refusal(f"quantizes {x.dtype}", "trace the model in float32")
    if b.options.float8 and (quant_min, quant_max) in _AS_FLOAT8:
        return _float8(b, x, axis)
    if x.constant:
        return constant_on_grid(b, b.node)
    return _activation(b, scale, zero_point, axis, quant_min, quant_max)


@rule(FAKE_QUANTIZE_BIAS)
def fake_quantize_bias(b: Builder, bias: Value, input_scale: Value, weight_scale: Value) -> str:
    """int32, on the grid of the accumulator that it is added to."""
    tensors = [b.program.constant(argument) for argument in b.node.args]
    if any(tensor is None for tensor in tensors):
        raise Refusal("quantizes a bias that is computed", "fold constants before lowering")
    source, sx, sw = (tensor.detach() for tensor in tensors if tensor is not None)
    name = _name(b.node.args[0])
    if b.options.float_biases:
        return b.initializer(name, lambda stored: tensor_proto(stored, FAKE_QUANTIZE_BIAS(source, sx, sw)))
    scale = bias_scale(sx, sw)
    steps = b.initializer(name, lambda stored: tensor_proto(stored, quantize_bias(source, sx, sw)))
    scale_name = b.initializer(f"{name}_scale", lambda stored: tensor_proto(stored, scale))
    return b.op("DequantizeLinear", steps, scale_name, axis=0 if scale.dim() else None)


# -- constants -------------------------------------------------------------------------------------------------------


def constant_on_grid(b: Builder, node: fx.Node, arrange: Callable[[Tensor], Tensor] | None = None) -> str:
    """The constant that a fake-quantize node puts on a grid: its integers, dequantized.

    arrange: how a convolution wants it, which leaves the grid's axis in its place.
    """
    given: Any = node.args
    source, scale, zero_point, axis, quant_min, quant_max = given
    tensor, factors, offsets = (_tensor(b, argument) for argument in given[:3])
    widened = b.options.widen_stored and not b.kernels.isdisjoint(node.users)
    kind = INT4 if quant_min >= -8 and quant_max <= 7 and not widened else INT8
    below = arrange is None and b.options.shift_weights and _has_room_below(b, node, kind)

    def stored(name: str) -> onnx.TensorProto:
        values = tensor if arrange is None else arrange(tensor)
        steps = quantize_to_grid(values, factors, offsets, axis, quant_min, quant_max)
        return tensor_proto(name, (steps - int(below)).to(torch.int8), kind)

    steps = b.initializer(_name(source) if arrange is None else f"{_name(source)}_arranged", stored)
    read = kind
    if kind == INT4 and b.options.widen:
        steps, read = b.op("Cast", steps, to=INT8), INT8
    if below:
        zero = b.constant((offsets - 1).to(torch.int8))
    else:
        zero = _zero_point(b, zero_point, lambda name: tensor_proto(name, offsets.to(torch.int8), read))
    return b.op("DequantizeLinear", steps, b.value(scale), zero, axis=axis)


def _has_room_below(b: Builder, node: fx.Node, kind: int) -> bool:
    """Whether a weight is to be stored one step lower, with zero point -1, and its type holds that."""
    least: Any = node.args[4]
    room = least > (-8 if kind == INT4 else -128) and (kind == INT8 or b.options.widen)
    return bool(room) and not b.kernels.isdisjoint(node.users) and wants_products(b.program, node)


_AS_FLOAT8 = ((-128, 127), (-127, 127))
_E4M3_MOST = 448.0
"""The greatest float8 of four bits of exponent and three of mantissa."""


def _float8(b: Builder, x: Value, axis: int | None) -> str:
    """Eight bits that float: what reached 127 steps reaches the type's greatest value."""
    tensor, scales, zeros = (b.program.constant(argument) for argument in b.node.args[:3])
    assert scales is not None
    if zeros is None or bool(zeros.any()):
        raise Refusal("a zero point that is not 0, for float8", "run SymmetrizeGrids first")
    factors = scales.detach() * (127 / _E4M3_MOST)
    scale = b.initializer(f"{_name(b.node.args[1])}_e4m3", lambda name: tensor_proto(name, factors))
    zero = _zero_point(b, b.node.args[2], lambda name: _float8_proto(name, torch.zeros_like(factors)))
    if tensor is None:
        return b.on_grid(x, scale, zero, (), axis)
    values = torch.clamp(tensor.detach() / along(factors, axis, tensor.dim()), -_E4M3_MOST, _E4M3_MOST)
    stored = b.initializer(_name(b.node.args[0]), lambda name: _float8_proto(name, values))
    return b.op("DequantizeLinear", stored, scale, zero, axis=axis)


def _float8_proto(name: str, values: Tensor) -> onnx.TensorProto:
    return tensor_proto(name, values.to(torch.float8_e4m3fn), FLOAT8)


def _zero_point(b: Builder, argument: object, make: Callable[[str], onnx.TensorProto]) -> str:
    """A zero point in its stored type; grids that share one share its tensor."""
    name = _name(argument)
    if name not in b.zero_points:
        b.zero_points[name] = b.initializer(name, make)
    return b.zero_points[name]


def _tensor(b: Builder, argument: object) -> Tensor:
    tensor = b.program.constant(argument)
    assert tensor is not None  # the verifier holds that scales and zero points are tensors of the program
    return tensor.detach()


def _name(argument: object) -> str:
    assert isinstance(argument, fx.Node)
    return str(argument.target)


# -- activations -----------------------------------------------------------------------------------------------------


def _activation(b: Builder, scale: Value, zero_point: Value, axis: int | None, quant_min: int, quant_max: int) -> str:
    factors, zeros = (_tensor(b, argument) for argument in b.node.args[1:3])
    offset, dtype = (128, torch.uint8) if b.options.unsigned else (0, torch.int8)
    offsets = (zeros + offset).to(dtype)
    zero = _zero_point(b, b.node.args[2], lambda name: tensor_proto(name, offsets))
    folds = axis is None and b.options.fold_clamps
    source, clamps = _unclamped(b, b.node.args[0]) if folds else (b.node.args[0], [])
    low, high = quant_min, quant_max
    for bounds in clamps:
        edges = quantize_to_grid(torch.tensor(bounds), factors, zeros, None, quant_min, quant_max)
        low, high = (min(max(end, int(edges[0])), int(edges[1])) for end in (low, high))
    whole = (low, high) == (-128, 127)
    if not whole and not b.options.fold_clamps:
        raise Refusal(f"a grid of {low}..{high} on activations, not of all 8 bits", "run SymmetrizeGrids first")
    clip = () if whole else tuple(b.number(end + offset, dtype) for end in (low, high))
    return _onto_grid(b, source, scale, zero, clip, axis)


def _onto_grid(b: Builder, source: object, scale: str, zero: str, clip: tuple[str, ...], axis: int | None) -> str:
    """A kernel requantizes what it computes, so the grid comes before a move that ends the node's operators."""
    assert isinstance(source, fx.Node)
    value, tail = b.value(source), b.tails.get(source)
    if value in b.heads and b.heads[value].first and axis is None:
        return heads_first(b, b.on_grid(b.heads[value].joined, scale, zero, clip), value)
    if tail is None or len(source.users) > 1 or axis is not None:
        return b.on_grid(value, scale, zero, clip, axis)
    return b.move(tail.operator, b.on_grid(tail.source, scale, zero, clip), *tail.rest)


def _unclamped(b: Builder, source: object) -> tuple[object, list[tuple[float, float]]]:
    """The value before the clamps that only this grid reads, and their bounds, the first applied first."""
    clamps: list[tuple[float, float]] = []
    while isinstance(source, fx.Node) and _is_clamp(b, source) and len(source.users) == 1:
        clamps.insert(0, clamp_range(source))
        source = source.args[0]
    return source, clamps


def _is_clamp(b: Builder, node: fx.Node) -> bool:
    if any(isinstance(argument, fx.Node) for argument in (*node.args[1:], *node.kwargs.values())):
        return False
    return role_of(b.program, node) is Role.CLAMP
