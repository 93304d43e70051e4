"""Linears of int8 weights whose result is wanted in float: MatMulIntegerToFloat, an operator of ONNX Runtime's own.

It takes more than two dimensions and adds the bias as it converts. Gemm, whose kernel takes matrices alone, needs a
reshape on either side, and each of those moves the integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, fx

from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, quantize_to_grid
from tersor.passes.arguments import argument
from tersor.passes.quantization.roles import Role, role_of

from .builder import Builder, Value
from .dtypes import tensor_proto

aten = torch.ops.aten

CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Columns:
    """A weight as a right factor: the names of its integers int8[in, out], and of their scales [out] or [1]."""

    steps: str
    scale: str


def weight_columns(b: Builder) -> Columns | None:
    """The weight of the linear that is being emitted; None where it is not stored on one symmetric grid a column."""
    weight = b.node.args[1]
    if not isinstance(weight, fx.Node) or weight.target is not FAKE_QUANTIZE or weight.args[3] not in (0, None):
        return None
    if weight not in b.columns:
        tensors = [b.program.constant(argument) for argument in weight.args[:3]]
        if any(tensor is None for tensor in tensors) or bool(tensors[2].any()):  # type: ignore[union-attr]  # not None
            return None
        b.columns[weight] = _stored_columns(b, weight, [tensor.detach() for tensor in tensors if tensor is not None])
    return b.columns[weight]


def _stored_columns(b: Builder, weight: fx.Node, tensors: list[Tensor]) -> Columns:
    """Four bits stay four bits in the file, where a conversion is allowed, which is done once, on loading."""
    values, scale, zero = tensors
    name = str(weight.args[0].target)  # type: ignore[union-attr]  # a constant
    axis, low, high = weight.args[3:6]
    narrow = b.options.widen and low >= -8 and high <= 7  # type: ignore[operator]  # by its schema
    kind = onnx.TensorProto.INT4 if narrow else onnx.TensorProto.INT8

    def transposed(given: str) -> onnx.TensorProto:
        steps: Tensor = quantize_to_grid(values, scale, zero, axis, low, high)  # type: ignore[arg-type]  # by its schema
        return tensor_proto(given, steps.to(torch.int8).T.contiguous(), kind)

    steps = b.initializer_again(name, transposed)
    steps = b.op("Cast", steps, to=onnx.TensorProto.INT8) if narrow else steps
    return Columns(steps, b.initializer_again(f"{name}_scale", lambda given: tensor_proto(given, scale.reshape(-1))))


def static_linear(b: Builder, x: Value, bias: Value | None) -> str | None:
    """A linear of more than two dimensions from a grid to floats; None where it is not that.

    Activations have to be uint8: with int8 the kernel multiplies one by one.
    """
    stored = b.stored.get(x)
    fits = b.options.contrib and b.options.unsigned and stored is not None and x.rank > 2
    if not fits or _reaches_grid(b, b.node) or not _read_by_linears(b.node.args[1]):
        return None
    columns = weight_columns(b)
    if columns is None:
        return None
    assert stored is not None
    given = (stored.steps, columns.steps, stored.scale, columns.scale, stored.zero_point)
    return b.op("MatMulIntegerToFloat", *given, None, _float_bias(b, bias), domain=CONTRIB)


def _float_bias(b: Builder, bias: Value | None) -> str | None:
    """The floats that a bias's integers stand for: they would be converted at every run."""
    source = argument(b.node, "bias")
    if not isinstance(source, fx.Node) or source.target is not FAKE_QUANTIZE_BIAS:
        return bias
    tensors = [b.program.constant(given) for given in source.args]
    values = FAKE_QUANTIZE_BIAS(*[tensor.detach() for tensor in tensors if tensor is not None])
    return b.initializer_again(str(source.args[0].target), lambda name: tensor_proto(name, values))  # type: ignore[union-attr]  # a constant


def _reaches_grid(b: Builder, node: fx.Node) -> bool:
    """Whether a result is quantized next, which the kernel of a Gemm does itself."""
    return any(
        user.target is FAKE_QUANTIZE or (role_of(b.program, user) in (Role.CLAMP, Role.MOVE) and _reaches_grid(b, user))
        for user in node.users
    )


def _read_by_linears(weight: object) -> bool:
    """Whether nothing else reads a weight, for which it would be stored again."""
    return isinstance(weight, fx.Node) and all(
        user.target is aten.linear.default and user.args[1] is weight for user in weight.users
    )
