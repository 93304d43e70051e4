"""Reading what the engine inspector says of an engine, where a GPU was there to deserialize it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from .kernels import LAYER, Kernel, Port, dtype_of

_WORDS = re.compile(r"[A-Za-z]+\d*")
_TYPES = frozenset(
    {"float", "half", "bfloat16", "bf16", "int8", "int4", "int32", "int64", "fp8", "fp4", "fp16", "fp32"}
)


def kernels_of_inspector(document: Mapping[str, Any]) -> tuple[Kernel, ...]:
    """The kernels that name ONNX nodes, from the inspector's JSON.

    Tensors carry their type under `Datatype`, or in words under `Format/Datatype` ("Channel major INT8 format ..."),
    and a layer's weights are `Constants` or `Weights` ({"Type": "Int8", "Count": 9408}), by version and kind of layer.
    """
    found = []
    for layer in document.get("Layers", ()):
        names = LAYER.findall(str(layer.get("Metadata", ""))) if isinstance(layer, Mapping) else []
        if not names:
            continue
        inputs = [_port(port, constant=False) for port in layer.get("Inputs", ())]
        inputs += [_port(port, constant=True) for port in layer.get("Constants", ())]
        inputs += _weights(layer)
        outputs = [_port(port, constant=False) for port in layer.get("Outputs", ())]
        kind, name = str(layer.get("LayerType", "")), str(layer.get("Name", ""))
        found.append(Kernel(kind, name, tuple(inputs), tuple(outputs), tuple(dict.fromkeys(names))))
    return tuple(found)


def _port(tensor: Mapping[str, Any], *, constant: bool) -> Port:
    words = _WORDS.findall(str(tensor.get("Datatype") or tensor.get("Format/Datatype", "")))
    kind = next((word for word in words if word.lower() in _TYPES), "")
    shape = tuple(size if size >= 0 else None for size in map(int, tensor.get("Dimensions", ())))
    port = Port(str(tensor.get("Name", "")), dtype_of(kind), shape)
    return Port(port.name, port.dtype, shape, port.dense) if constant else port


def _weights(layer: Mapping[str, Any]) -> list[Port]:
    """A convolution's weights, of which the number and the type are told; 2:4 sparse ones hold half of their values."""
    weights = layer.get("Weights")
    if not isinstance(weights, Mapping) or not weights.get("Count"):
        return []
    outputs = int(layer.get("OutMaps", 1)) or 1
    shape = (outputs, math.ceil(int(weights["Count"]) / outputs))
    port = Port("weights", dtype_of(str(weights.get("Type", ""))), shape)
    return [Port(port.name, port.dtype, shape, port.dense // 2 if layer.get("HasSparseWeights") else port.dense)]
