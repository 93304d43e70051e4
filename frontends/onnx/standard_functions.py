"""The ONNX standard defines many operators as functions of others: what to import where there is no rule."""

from __future__ import annotations

from typing import Any

from onnx import FunctionProto, TypeProto, defs, helper

from .call import Call
from .dtypes import ONNX_TYPES
from .values import Known, Value

_REFUSED = frozenset({"SoftmaxCrossEntropyLoss"})
"""Operators whose body loses an attribute of theirs, so that expanding it would compute something else."""


def expansion(call: Call) -> FunctionProto | None:
    """The body that the standard gives for this node, with the attributes' defaults; None where it gives none."""
    node = call.proto
    if not defs.has(node.op_type, node.domain) or not call.opset or node.op_type in _REFUSED:
        return None
    schema: Any = defs.get_schema(node.op_type, call.opset, node.domain)
    function = FunctionProto()
    if schema.has_function:
        function.CopyFrom(schema.function_body)
    elif schema.has_context_dependent_function:
        types = [_type(call, call.input(i)) if call.has(i) else TypeProto() for i in range(len(node.input))]
        text = schema.get_context_dependent_function(node.SerializeToString(), [t.SerializeToString() for t in types])
        function.ParseFromString(text)
    else:
        return None
    stated = {attribute.name for attribute in function.attribute_proto}
    defaults = [a.default_value for a in schema.attributes.values() if a.default_value.name and a.name not in stated]
    function.attribute_proto.extend(defaults)
    return function


def _type(call: Call, value: Value) -> TypeProto:
    if isinstance(value, Known) and value.onnx_type is not None:
        return helper.make_tensor_type_proto(value.onnx_type, list(value.tensor.shape))
    sizes = [size if isinstance(size, int) else None for size in call.shape(value)]
    return helper.make_tensor_type_proto(ONNX_TYPES[call.dtype(value)], sizes)
