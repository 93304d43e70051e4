"""Rules for dynamic quantization: activations whose grid is found as the model runs, weights that are stored integers.

    DynamicQuantizeLinear(x)         -> qx, sx, zx
    MatMulInteger(qx, qw, zx, zw)    -> product
    Mul(Cast(product), Mul(sx, sw))  -> y                   linear(fake_quantize_dynamic(x), fake_quantize(w))

An integer that meets anything else is computed as the file says. What it is made of is noted in `importer.dynamic`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import fx

from tersor.ir.block_operators import FAKE_QUANTIZE_DYNAMIC
from tersor.ir.operators import FAKE_QUANTIZE_BIAS, bias_scale

from ..call import Call
from ..registry import find, rule
from ..values import Known, Value
from .linear import bias_on_grid
from .quantization import FloatCall, constant, real

aten = torch.ops.aten
MICROSOFT = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Stored:
    """The integers, the zero point or the scale of a value that was quantized as it ran; the scale times `factor`."""

    source: fx.Node
    kind: str
    factor: Known | None = None


@dataclass(frozen=True, eq=False)
class Product:
    """A product of such integers with stored ones. `made` gives the float operator, told the weight's scale."""

    source: fx.Node
    made: Callable[[Known], Value | None]


@rule("DynamicQuantizeLinear")
def dynamic_quantize(op: Call) -> list[Value]:
    """uint8 over the range of the values, which is computed when the model runs; with scale and zero point."""
    x = op.input(0)
    low = op.call(aten.clamp.default, op.call(aten.amin.default, x), None, 0.0)
    high = op.call(aten.clamp.default, op.call(aten.amax.default, x), 0.0)
    scale = op.call(aten.div.Tensor, op.call(aten.sub.Tensor, high, low), 255.0)
    place = op.call(aten.round.default, op.call(aten.div.Tensor, op.call(aten.neg.default, low), scale))
    zero = op.call(aten.clamp.default, place, 0.0, 255.0)
    steps = op.call(aten.round.default, op.call(aten.div.Tensor, x, scale))
    stored = op.call(aten.clamp.default, op.call(aten.add.Tensor, steps, zero), 0.0, 255.0)
    results = [op.cast(stored, torch.uint8), scale, op.cast(zero, torch.uint8)]
    for kind, result in zip(("integers", "scale", "zero point"), results, strict=True):
        if isinstance(x, fx.Node) and isinstance(result, fx.Node):
            op.importer.dynamic[result] = Stored(x, kind)
    return results


@rule("MatMulInteger")
def matmul_integer(op: Call) -> Value:
    a, b = _centred(op, 0, torch.int32, -2), _centred(op, 1, torch.int32, -1)
    return _noted(op, "MatMul", op.call(aten.matmul.default, a, b))


@rule("ConvInteger")
def conv_integer(op: Call) -> Value:
    """In double precision, which holds every int32 exactly: torch convolves no integers."""
    values: list[Value | None] = [_centred(op, 0, torch.float64, None), _centred(op, 1, torch.float64, 0)]
    found = find("", "Conv", op.opset)
    assert found is not None, "Conv has a rule for every opset"
    result: Value = found.function(FloatCall(op, values))  # type: ignore[assignment]  # Conv gives one value
    return _noted(op, "Conv", op.cast(result, torch.int32))


def _centred(op: Call, index: int, dtype: torch.dtype, axis: int | None) -> Value:
    """The integers less their zero point, in a wider type; its several zero points go along the axis."""
    wide, zero = op.cast(op.input(index), dtype), op.optional(index + 2)
    if zero is None:
        return wide
    zero = op.cast(zero, dtype)
    if axis is not None and op.rank(zero) == 1:
        rank = op.rank(wide)
        zero = op.call(aten.reshape.default, zero, [-1 if place == axis % rank else 1 for place in range(rank)])
    return op.call(aten.sub.Tensor, wide, zero)


def _noted(op: Call, operator: str, product: Value) -> Value:
    """Note of a product what it is of, where that is one quantized value and stored integers."""
    x, weight = (_stored(op, op.input(0)), op.importer.known(op.input(1)))
    zero = _stored(op, op.optional(2))
    if x is None or zero is None or weight is None or not isinstance(product, fx.Node):
        return product
    kinds = (x.kind, zero.kind) == ("integers", "zero point")
    place = op.importer.known(op.input(3)) if op.has(3) else Known(torch.zeros((), dtype=weight.tensor.dtype))
    if kinds and x.source is zero.source and place is not None:
        op.importer.dynamic[product] = Product(x.source, _float_product(op, operator, x.source, weight, place))
    return product


def _stored(op: Call, value: Value | None) -> Stored | None:
    found = op.importer.dynamic.get(value) if isinstance(value, fx.Node) else None
    return found if isinstance(found, Stored) else None


def _float_product(
    op: Call, operator: str, source: fx.Node, weight: Known, zero: Known
) -> Callable[[Known], Value | None]:
    def made(scale: Known) -> Value | None:
        return float_product(op, operator, source, weight, scale, zero)

    return made


def float_product(op: Call, operator: str, source: Value, weight: Known, scale: Known, zero: Known) -> Value | None:
    """The float operator on the value, quantized as it runs, and on the weight, on its grid.

    None where the scales are neither one nor one for each output.
    """
    axis, outputs = (0, weight.tensor.shape[0]) if operator == "Conv" else (-1, weight.tensor.shape[-1])
    steps = scale.tensor.reshape(-1) if scale.tensor.numel() > 1 else scale.tensor.reshape(())
    fits = steps.dim() == 0 or (len(steps) == outputs and scale.tensor.shape[axis - weight.tensor.dim() + 1 :][:1])
    if not fits or zero.tensor.numel() not in (1, steps.numel()):
        return None
    found = find("", operator, op.opset if op.proto.domain == "" else op.scope.opset(""))
    if found is None:
        return None
    place = replace(zero, tensor=zero.tensor.reshape(-1).expand(steps.numel()).reshape(steps.shape).contiguous())
    along = None if steps.dim() == 0 else axis % weight.tensor.dim()
    stored = real(op, weight, replace(scale, tensor=steps), place, along, (weight, scale, along))
    x = op.importer.once(("dynamic", source), lambda: op.call(FAKE_QUANTIZE_DYNAMIC, source, False))
    result: Value = found.function(FloatCall(op, [x, stored]))  # type: ignore[assignment]  # both give one value
    return result


def scaled_product(op: Call) -> Value | None:
    """Mul, where it scales such a product; where it scales a scale, that is noted. None for any other."""
    for index in (0, 1):
        value, other = op.input(index), op.input(1 - index)
        node = value.args[0] if isinstance(value, fx.Node) and value.target is aten._to_copy.default else None
        product = op.importer.dynamic.get(node) if isinstance(node, fx.Node) else None
        scale = _stored(op, other)
        if isinstance(product, Product) and scale is not None and scale.factor is not None:
            return product.made(scale.factor) if scale.source is product.source and scale.kind == "scale" else None
        known, inner = op.importer.known(other), _stored(op, value)
        if inner is not None and inner.kind == "scale" and inner.factor is None and known is not None:
            result = op.call(aten.mul.Tensor, value, other)
            if isinstance(result, fx.Node):
                op.importer.dynamic[result] = replace(inner, factor=known)
            return result
    return None


# -- ONNX Runtime's own, which its optimizer makes of these ------------------------------------------------------------


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(op: Call) -> Value:
    """The product of a value that is quantized as it runs with stored integers, plus a bias where there is one."""
    weight, scale = op.importer.known(op.input(1)), op.importer.known(op.input(2))
    if weight is None or scale is None:
        op.refuse("the weight is computed when the model runs", expected="a constant")
    zero = op.importer.known(op.input(3)) if op.has(3) else Known(torch.zeros((), dtype=weight.tensor.dtype))
    product = None if zero is None else float_product(op, "MatMul", op.input(0), weight, scale, zero)
    if product is None:
        op.refuse("the scales of the weight do not fit it", expected="one, or one for each column")
    return _with_bias(op, product, 4)


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(op: Call) -> Value:
    """a, b, their scales, their zero points and a bias."""
    if op.importer.known(op.input(2)) is not None:
        return _with_stored_bias(op, _static_product(op), 6)
    x, scale, zero = _stored(op, op.input(0)), _stored(op, op.input(2)), _stored(op, op.optional(4))
    weight, steps = op.importer.known(op.input(1)), op.importer.known(op.input(3))
    if x is None or scale is None or zero is None or weight is None or steps is None:
        op.refuse("integers that do not come from DynamicQuantizeLinear", expected="those, and a stored weight")
    place = op.importer.known(op.input(5)) if op.has(5) else Known(torch.zeros((), dtype=weight.tensor.dtype))
    product = None if place is None else float_product(op, "MatMul", x.source, weight, steps, place)
    if product is None or not x.source is scale.source is zero.source:
        op.refuse("the scales do not fit", expected="those of the same values; one, or one for each column")
    return _with_bias(op, product, 6)


def _static_product(op: Call) -> Value:
    """The product of a value on a grid that the file holds with stored integers."""
    values: list[Value | None] = []
    for place in (0, 1):
        steps, scale = op.input(place), constant(op, place + 2)
        single = scale.tensor.numel() == 1
        scale = replace(scale, tensor=scale.tensor.reshape(() if single else (-1,)))
        zero = constant(op, place + 4).tensor if op.has(place + 4) else torch.zeros((), dtype=op.dtype(steps))
        place_ = Known(zero.reshape(-1).expand(scale.tensor.numel()).reshape(scale.tensor.shape).contiguous())
        axis = None if single else op.rank(steps) - 1
        values.append(real(op, steps, scale, place_, axis, (steps, op.input(place + 2), axis)))
    found = find("", "MatMul", op.scope.opset(""))
    assert found is not None, "MatMul has a rule for every opset"
    result: Value = found.function(FloatCall(op, values))  # type: ignore[assignment]  # MatMul gives one value
    return result


def _with_stored_bias(op: Call, product: Value, index: int) -> Value:
    """A linear with its bias, on the grid of its accumulator where the numbers are all of that grid."""
    known = op.importer.known(op.input(index)) if op.has(index) else None
    if known is None or not isinstance(product, fx.Node) or product.target is not aten.linear.default:
        return _with_bias(op, product, index)
    x, weight = product.args
    steps = bias_scale(constant(op, 2).tensor.float(), constant(op, 3).tensor.float())
    bias = op.importer.once((known, op.input(2), op.input(3)), lambda: replace(known, bias_scale=steps))
    if torch.equal(FAKE_QUANTIZE_BIAS(known.tensor, steps, torch.ones(())), known.tensor):
        return op.call(aten.linear.default, x, weight, bias_on_grid(op, bias, x, weight))  # type: ignore[arg-type]
    return op.call(aten.linear.default, x, weight, known)


def _with_bias(op: Call, product: Value, index: int) -> Value:
    return op.call(aten.add.Tensor, product, op.input(index)) if op.has(index) else product
