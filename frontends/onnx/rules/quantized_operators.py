"""Rules for operators that take and give integers: the float operator between the grids of its inputs and result.

Each row names the float operator, whose own rule is used on dequantized inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tersor.ir.operators import bias_scale

from ..call import Call
from ..dtypes import GRIDS, ONNX_TYPES, name_of
from ..registry import add_rule, find
from ..values import Known, Quantized, Value
from .quantization import FloatCall, constant, real

aten = torch.ops.aten


@dataclass(frozen=True)
class _Form:
    """How an operator lays out its inputs.

    operator: the float operator. tensors: where the triples of integers, scale and zero point start; None: wherever
    there is one from `first` on. result: where its scale and zero point stand. bias: where int32 stands.
    """

    operator: str
    tensors: tuple[int, ...] | None
    result: int
    bias: int | None = None
    domain: str = "com.microsoft"


_FORMS: dict[str, _Form] = {
    "QGemm": _Form("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": _Form("Add", (0, 3), 6),
    "QLinearAveragePool": _Form("AveragePool", (0,), 3),
    "QLinearConcat": _Form("Concat", None, 0),
    "QLinearConv": _Form("Conv", (0, 3), 6, bias=8, domain=""),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6, domain=""),
    "QLinearMul": _Form("Mul", (0, 3), 6),
    "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "QLinearSoftmax": _Form("Softmax", (0,), 3),
}


def _import(op: Call, form: _Form) -> Value:
    if op.attr_int("channels_last", 0):
        op.refuse("channels stand last", expected="channels_last 0")
    starts = range(2, len(op.proto.input), 3) if form.tensors is None else form.tensors
    values: list[Value | None] = [_dequantized(op, form, place, start) for place, start in enumerate(starts)]
    if form.bias is not None and op.has(form.bias):
        values.append(_bias(op, form.bias))
    call = FloatCall(op, values)
    if op.has_attr("opset"):
        call.opset = op.attr_int("opset")
    found = find("", form.operator, call.opset)
    if found is None:
        op.refuse(f"there is no import rule for {form.operator} in that opset", found=call.opset)
    result = found.function(call)
    assert not isinstance(result, list | tuple) or not result, "the float operators give one result"
    return _quantized(op, result, form.result)  # type: ignore[arg-type]  # one value, as asserted


def _dequantized(op: Call, form: _Form, place: int, start: int) -> Value:
    x, scale, zero = op.input(start), constant(op, start + 1), constant(op, start + 2)
    rank = op.rank(x)
    if scale.tensor.dim() == 0:
        axis = None
    elif form.operator == "Conv":
        axis = 0
    else:
        flipped = form.operator == "Gemm" and bool(op.attr_int("transB", 0))
        axis = rank - 2 if place == 0 or flipped else rank - 1
    return real(op, x, scale, _as_many(zero, scale), axis, (x, op.input(start + 1), axis))


def _as_many(zero: Known, scale: Known) -> Known:
    """One zero point for each scale, where one is given for all."""
    return replace(zero, tensor=zero.tensor.expand(scale.tensor.shape).contiguous())


def _bias(op: Call, index: int) -> Known:
    """The int32 bias, in steps of the product of the scales of input and weight, as what it stands for."""
    stored = op.importer.known(op.input(index))
    if stored is None:
        op.refuse("the bias is computed when the model runs", expected="a constant")
    steps = bias_scale(constant(op, 1).tensor.float(), constant(op, 4).tensor.float())

    def made() -> Known:
        numbers = stored.tensor.double() * steps.double()
        return Known(numbers.float(), stored.name, trainable=True, bias_scale=steps)

    return op.importer.once((stored, op.input(1), op.input(4)), made)


def _quantized(op: Call, value: Value, index: int) -> Value:
    """The result as integers on its grid; as it is where no scale is given."""
    if not op.has(index):
        return value
    scale, zero = constant(op, index), constant(op, index + 1)
    if scale.tensor.dim():
        op.refuse("the result has several scales", expected="one scale", found=list(scale.tensor.shape))
    onnx_type = zero.onnx_type or ONNX_TYPES[zero.tensor.dtype]
    if onnx_type not in GRIDS:
        op.refuse("there is no integer grid of that type", found=name_of(onnx_type))
    return Quantized(op.node(value), scale, zero, None, onnx_type)


for _operator, _form in _FORMS.items():
    add_rule(_operator, lambda op, form=_form: _import(op, form), domain=_form.domain)  # type: ignore[misc]
