"""Rules for operators that make tensors."""

from __future__ import annotations

import torch

from ..call import Call
from ..registry import rule
from ..values import Known, Value

aten = torch.ops.aten


@rule("Constant")
def constant(op: Call) -> Value:
    """A constant is not trained, unlike an initializer."""
    if op.has_attr("value"):
        return op.attr_tensor("value")
    if op.has_attr("value_int"):
        return Known(torch.tensor(op.attr_int("value_int")))
    if op.has_attr("value_float"):
        return Known(torch.tensor(op.attr_float("value_float"), dtype=torch.float32))
    if op.has_attr("value_ints"):
        return Known(torch.tensor(op.attr_ints("value_ints"), dtype=torch.int64))
    if op.has_attr("value_floats"):
        return Known(torch.tensor(op.attr_floats("value_floats"), dtype=torch.float32))
    op.refuse("a constant of a kind that torch has no tensors of", expected="value, value_int(s) or value_float(s)")


@rule("ConstantOfShape")
def constant_of_shape(op: Call) -> Value:
    value = op.attr_tensor("value").tensor if op.has_attr("value") else torch.zeros(1)
    return op.call(aten.full.default, op.sizes(0), value.item(), dtype=value.dtype)


@rule("Range")
def arange(op: Call) -> Value:
    """From start to limit by delta; sizes among them make it as long as the input asks."""
    dtype = op.dtype(op.input(0))
    if dtype.is_floating_point:
        return op.call(aten.arange.start_step, *[op.known(index).item() for index in range(3)], dtype=dtype)
    return op.call(aten.arange.start_step, *[op.sizes(index)[0] for index in range(3)], dtype=dtype)
