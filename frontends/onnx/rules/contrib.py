"""Rules for operators of ONNX Runtime's own that its optimizer writes into float files."""

from __future__ import annotations

import torch

from ..call import Call
from ..registry import rule
from ..values import Value
from .convolution import convolution
from .elementwise import gelu
from .linear import gemm, matmul_of

aten = torch.ops.aten
MICROSOFT = "com.microsoft"

rule("Gelu", domain=MICROSOFT)(gelu)

_AFTER = {"Relu": aten.relu.default, "Tanh": aten.tanh.default, "Sigmoid": aten.sigmoid.default}


@rule("BiasGelu", "FastGelu", domain=MICROSOFT)
def biased_gelu(op: Call) -> Value:
    x, bias = op.input(0), op.optional(1)
    approximate = "tanh" if op.proto.op_type == "FastGelu" else "none"
    x = x if bias is None else op.call(aten.add.Tensor, x, bias)
    return op.call(aten.gelu.default, x, approximate=approximate)


@rule("QuickGelu", domain=MICROSOFT)
def quick_gelu(op: Call) -> Value:
    """x * sigmoid(alpha * x), which is silu for alpha 1."""
    x, alpha = op.input(0), op.attr_float("alpha", 1.702)
    if alpha == 1:
        return op.call(aten.silu.default, x)
    return op.call(aten.mul.Tensor, x, op.call(aten.sigmoid.default, op.call(aten.mul.Tensor, x, alpha)))


@rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul(op: Call) -> Value:
    """alpha * a @ b, the last two axes of each turned on request."""
    if op.attr_int("transBatchA", 0) or op.attr_int("transBatchB", 0):
        op.refuse("the first axis moves before the product", expected="transBatchA and transBatchB 0")
    left = _turned(op, op.input(0)) if op.attr_int("transA", 0) else op.input(0)
    right = _turned(op, op.input(1)) if op.attr_int("transB", 0) else op.input(1)
    product, alpha = matmul_of(op, left, right), op.attr_float("alpha", 1.0)
    return product if alpha == 1 else op.call(aten.mul.Tensor, product, alpha)


def _turned(op: Call, value: Value) -> Value:
    order = list(range(op.rank(value)))
    if len(order) < 2:
        return value
    return op.call(aten.permute.default, value, [*order[:-2], order[-1], order[-2]])


@rule("FusedGemm", domain=MICROSOFT)
def fused_gemm(op: Call) -> Value:
    return _activated(op, gemm(op))


@rule("FusedConv", domain=MICROSOFT)
def fused_conv(op: Call) -> Value:
    """A convolution, plus a tensor where one is given, and an activation."""
    result, added = convolution(op), op.optional(3)
    return _activated(op, result if added is None else op.call(aten.add.Tensor, result, added))


def _activated(op: Call, value: Value) -> Value:
    name = op.attr_str("activation", "")
    if name and name not in _AFTER:
        op.refuse(f"the activation {name} is not known", expected=", ".join(_AFTER))
    return op.call(_AFTER[name], value) if name else value


@rule("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(op: Call) -> list[Value | None]:
    """Layer norm of the sum of its inputs, and that sum on request."""
    total, bias = _total(op, 4), op.optional(3)
    sizes, epsilon = [op.size(total, -1)], op.attr_float("epsilon", 1e-12)
    return [op.call(aten.layer_norm.default, total, sizes, op.input(2), bias, epsilon), None, None, total]


@rule("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(op: Call) -> list[Value | None]:
    total = _total(op, 3)
    sizes, epsilon = [op.size(total, -1)], op.attr_float("epsilon", 1e-12)
    return [op.call(aten.rms_norm.default, total, sizes, op.input(2), epsilon), None, None, total]


@rule("SimplifiedLayerNormalization")
def simplified_layer_norm(op: Call) -> Value:
    """RMS norm; ONNX Runtime writes it into ONNX's own domain."""
    x = op.input(0)
    sizes = op.shape(x)[op.axis(op.attr_int("axis", -1), op.rank(x)) :]
    return op.call(aten.rms_norm.default, x, sizes, op.input(1), op.attr_float("epsilon", 1e-5))


def _total(op: Call, bias: int) -> Value:
    total = op.call(aten.add.Tensor, op.input(0), op.input(1))
    return op.call(aten.add.Tensor, total, op.input(bias)) if op.has(bias) else total
