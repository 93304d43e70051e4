"""Layers that are to stay float between integers.

ONNX Runtime (`WeightBiasQuantization`) stores the float weight of a convolution, transposed convolution or Gemm as int8
with one scale a tensor when the layer reads a `DequantizeLinear` and a `QuantizeLinear` reads it: a layer that was left
float on purpose, or has no integer kernel at all, would lose accuracy and gain nothing. What such a layer reads is
dequantized by operators that ONNX Runtime does not take for that, with the same result:

    QuantizeLinear -> DequantizeLinear -> Conv         QuantizeLinear -> Cast -> Sub -> Mul -> Conv
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from onnx import numpy_helper

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""MatMul, as one that a bias follows becomes Gemm."""
_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Flatten", "Identity"})
"""ONNX Runtime carries the two through these."""
_BETWEEN = _MOVES | {"Relu", "Clip", "Add"}
"""What may stand between a layer and its QuantizeLinear."""


def keep_float(model: onnx.ModelProto) -> None:
    """Dequantize otherwise for every layer that ONNX Runtime would quantize by itself. Changes the model given."""
    links = _Links(model.graph)
    dequantized: dict[str, str] = {}
    for node in list(model.graph.node):
        reader = links.before_moves(node)
        source = links.made.get(reader.input[0]) if reader.input else None
        if source is None or source.op_type != "DequantizeLinear" or not links.changes(node, source):
            continue
        value = source.output[0]
        if value not in dequantized:
            dequantized[value] = _dequantize(links, source)
        reader.input[0] = dequantized[value]
    read = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    for node in [links.made[value] for value in dequantized if value not in read]:
        model.graph.node.remove(node)


@dataclass
class _Links:
    """A graph with what makes and reads each value, and the tensors that it stores."""

    graph: onnx.GraphProto
    stored: dict[str, onnx.TensorProto] = field(init=False)
    made: dict[str, onnx.NodeProto] = field(init=False)
    readers: dict[str, list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        self.made = {name: node for node in self.graph.node for name in node.output}
        self.readers = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def before_moves(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The first of the moves that a node reads through; the node where there are none."""
        while node.input and (before := self.made.get(node.input[0])) is not None and before.op_type in _MOVES:
            node = before
        return node

    def changes(self, node: onnx.NodeProto, source: onnx.NodeProto) -> bool:
        """Whether a node is a layer that ONNX Runtime would quantize, as it reads what `source` dequantizes."""
        scale = self.stored.get(source.input[1])
        if scale is None or scale.dims:
            return False
        weight = self.stored.get(node.input[1]) if node.op_type in _LAYERS else None
        return weight is not None and weight.data_type == onnx.TensorProto.FLOAT and self._is_quantized(node)

    def _is_quantized(self, node: onnx.NodeProto) -> bool:
        """Whether a node's result goes to a QuantizeLinear, through moves and clamps."""
        users = [user for name in node.output for user in self.readers.get(name, ())]
        return any(
            user.op_type == "QuantizeLinear" or (user.op_type in _BETWEEN and self._is_quantized(user))
            for user in users
        )


def _dequantize(links: _Links, node: onnx.NodeProto) -> str:
    """Float32(steps) - zero_point, times the scale, as DequantizeLinear defines it; returns its name."""
    name = f"{node.output[0]}/float"
    zero = numpy_helper.to_array(links.stored[node.input[2]]).astype("float32")
    links.graph.initializer.append(numpy_helper.from_array(zero, f"{name}/zero_point"))
    steps, moved = f"{name}/Cast", f"{name}/Sub"
    nodes = [
        onnx.helper.make_node("Cast", [node.input[0]], [steps], name=steps, to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Sub", [steps, f"{name}/zero_point"], [moved], name=moved),
        onnx.helper.make_node("Mul", [moved, node.input[1]], [name], name=f"{name}/Mul"),
    ]
    place = next(place for place, found in enumerate(links.graph.node) if found.output[0] == node.output[0])
    for offset, new in enumerate(nodes):
        links.graph.node.insert(place + 1 + offset, new)
    return name
