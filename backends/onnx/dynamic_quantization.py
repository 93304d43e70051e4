"""Rules for activations whose grid is found at run time: what ONNX Runtime runs in integer.

per tensor   DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (fused to DynamicQuantizeMatMul)
per token    scale = max |x| / 127 of each row; QuantizeLinear(x / scale) -> MatMulInteger -> Cast -> Mul
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
from torch import fx

from tersor.ir.block_operators import FAKE_QUANTIZE_DYNAMIC

from .builder import Builder, Value
from .integer_products import weight_columns
from .registry import Refusal, rule

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Dynamic:
    """A value quantized at run time: the names of its uint8 integers, its scale, and its zero point."""

    steps: str
    scale: str
    zero_point: str
    per_token: bool


@rule(FAKE_QUANTIZE_DYNAMIC)
def fake_quantize_dynamic(b: Builder, x: Value, per_token: bool) -> str:
    if x.dtype != torch.float32:
        raise Refusal(f"quantizes {x.dtype}", "trace the model in float32")
    if not per_token:
        steps, scale, zero = b.op_many("DynamicQuantizeLinear", 3, x)
        b.dynamic[b.node] = Dynamic(steps, scale, zero, per_token=False)
        return b.op("DequantizeLinear", steps, scale, zero)
    largest = b.op("ReduceMax", b.op("Abs", x), b.ints(-1), keepdims=1)
    scale = b.op("Div", largest, b.number(127.0, torch.float32))
    tiny, one = b.number(_TINY, torch.float32), b.number(1.0, torch.float32)
    scale = b.op("Where", b.op("Greater", scale, tiny), scale, one)
    zero = b.constant(torch.tensor(128, dtype=torch.uint8))
    steps = b.op("QuantizeLinear", b.op("Div", x, scale), one, zero)
    b.dynamic[b.node] = Dynamic(steps, scale, zero, per_token=True)
    return b.op("Mul", b.op("DequantizeLinear", steps, one, zero), scale)


def dynamic_linear(b: Builder, bias: Value | None) -> str | None:
    """A linear of a value quantized at run time and an int8 weight; None where it is not that."""
    x = b.node.args[0]
    if not isinstance(x, fx.Node) or x not in b.dynamic:
        return None
    columns = weight_columns(b)
    if columns is None:
        return None
    found = b.dynamic[x]
    product = b.op("MatMulInteger", found.steps, columns.steps, found.zero_point)
    sums = b.op("Cast", product, to=onnx.TensorProto.FLOAT)
    if found.per_token:
        # One after the other: of their product ONNX Runtime would make a kernel that takes one scale for all rows.
        result = b.op("Mul", b.op("Mul", sums, columns.scale), found.scale)
    else:
        result = b.op("Mul", sums, b.op("Mul", found.scale, columns.scale))
    return result if bias is None else b.op("Add", result, bias)
