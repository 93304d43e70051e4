"""A program to an ONNX model: one walk over the graph, a rule a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS
from tersor.ir.errors import LoweringError
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.origin import Origin
from tersor.ir.printer import operator_name
from tersor.ir.program import Program
from tersor.ir.shapes import KEY, shape_of

from ..base import Unsupported
from ..grids import grids, integer_nodes
from . import (  # noqa: F401  # they fill the table of rules
    activations,
    attention,
    block_quantization,
    contractions,
    creation,
    dynamic_quantization,
    elementwise,
    indexing,
    logic,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reductions,
    resizing,
)
from .builder import Builder, OnnxOptions, Value
from .dtypes import element_type, tensor_proto
from .registry import RULES, Refusal

_STORED_ARGUMENTS: dict[Any, tuple[int, ...]] = {
    FAKE_QUANTIZE: (0, 2),
    FAKE_QUANTIZE_BIAS: (0, 1, 2),
    FAKE_QUANTIZE_BLOCKS: (0, 2),
}
"""Arguments, by place, of which a rule stores integers of its own in the tensor's stead."""


def emit_model(program: Program, options: OnnxOptions | None = None) -> onnx.ModelProto:
    """The model of a program, with the names of its nodes, parameters, inputs and outputs.

    Raises LoweringError naming the first node that no rule takes.
    """
    emitter = _Emitter(program, options or OnnxOptions())
    for node in program.graph.nodes:
        refused = emitter.emit(node)
        if refused is not None:
            raise LoweringError(refused.reason, node=node, hint=refused.hint)
    return emitter.model()


def unsupported(program: Program, options: OnnxOptions | None = None) -> list[Unsupported]:
    """The nodes that have no rule, or whose rule refuses what it is called with."""
    emitter = _Emitter(program, options or OnnxOptions())
    return [refused for node in program.graph.nodes if (refused := emitter.emit(node)) is not None]


class _Emitter:
    def __init__(self, program: Program, options: OnnxOptions) -> None:
        self.program = program
        self.integer = integer_nodes(program, grids(program))
        self.builder = Builder(program, options, kernels=self.integer)
        self.inputs = [self.builder.unique(spec.name) for spec in program.signature.inputs]
        self.outputs = [self.builder.unique(name) for name in program.signature.output_names]
        self._waiting = dict(zip(program.placeholders, self.inputs, strict=True))
        self._wanted: dict[fx.Node, str] = {}
        for node, name in zip(program.outputs, self.outputs, strict=True):
            self._wanted.setdefault(node, name)
        self._tensors: dict[int, str] = {}

    # -- nodes -----------------------------------------------------------------------------------------------------

    def emit(self, node: fx.Node) -> Unsupported | None:
        """Emit one node; the reason where that cannot be done."""
        values = self.builder.values
        if node.op == "placeholder":
            values[node] = Value(self._waiting[node], node.meta[KEY])
        elif node.op == "get_attr":
            values[node] = self._read(node)
        elif node.op == "call_function":
            return self._call(node)
        return None

    def _read(self, node: fx.Node) -> Value:
        tensor = self.program.tensor(str(node.target))
        if id(tensor) not in self._tensors:
            if all(_is_stored_otherwise(node, user) for user in node.users):
                return Value(str(node.target), node.meta[KEY], constant=True)
            self._tensors[id(tensor)] = self.builder.initializer(
                str(node.target), lambda name: tensor_proto(name, tensor)
            )
        return Value(self._tensors[id(tensor)], node.meta[KEY], constant=True)

    def _call(self, node: fx.Node) -> Unsupported | None:
        found = RULES.get(node.target)
        if found is None:
            return replace(_refused(node, *_no_rule(node)), unknown=True)
        start = len(self.builder.nodes)
        self.builder.begin(node, integer=node in self.integer or node.target is FAKE_QUANTIZE)
        try:
            result = found.call(self.builder, node, self._resolve)
        except Refusal as refusal:
            return _refused(node, refusal.reason, refusal.hint)
        self._name(node, result, start)
        return None

    def _resolve(self, argument: Any) -> Any:
        """The graph's arguments with nodes as values; a node that was not emitted by its type alone."""
        if isinstance(argument, fx.Node):
            return self.builder.value(argument)
        if isinstance(argument, Mapping):
            return {key: self._resolve(item) for key, item in argument.items()}
        if isinstance(argument, list | tuple):
            return [self._resolve(item) for item in argument]
        return argument

    def _name(self, node: fx.Node, result: Any, start: int) -> None:
        """Give the result the node's name, or that of the output that it is; a part of it that of who picks it."""
        fake = node.meta[KEY]
        if isinstance(result, str):
            self.builder.values[node] = value = Value(self._rename(result, node, start), fake)
            for proto in self.builder.nodes[start:]:
                proto.name = node.name if value in proto.output else proto.name
            return
        pickers = {user.args[1]: user for user in node.users}
        self.builder.values[node] = tuple(
            Value(self._rename(part, pickers[index], start) if index in pickers else part, fake[index])
            for index, part in enumerate(result)
        )

    def _rename(self, value: str, node: fx.Node, start: int) -> str:
        made = any(value in proto.output for proto in self.builder.nodes[start:])
        if not made:
            return str(value)
        name = self._wanted.pop(node, None) or self.builder.unique(node.name)
        self.builder.rename(value, name, start)
        return name

    # -- the model -------------------------------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        """What is needed for the outputs, checked by nobody yet."""
        self._finish_outputs()
        nodes = _live(self.builder.nodes, self.outputs)
        initializers = self._initializers(nodes)
        made = {name for node in nodes for name in node.output} - set(self.outputs)
        graph = onnx.helper.make_graph(
            nodes,
            self.program.name,
            [self._info(name, node) for name, node in zip(self.inputs, self.program.placeholders, strict=True)],
            [self._info(name, node) for name, node in zip(self.outputs, self.program.outputs, strict=True)],
            initializers,
            value_info=self._value_infos(made),
        )
        opsets = [onnx.helper.make_opsetid("", self.builder.options.opset)]
        version = onnx.helper.find_min_ir_version_for(opsets)
        opsets += [onnx.helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in nodes} - {""})]
        return onnx.helper.make_model(graph, producer_name="tersor", opset_imports=opsets, ir_version=version)

    def _initializers(self, nodes: list[onnx.NodeProto]) -> list[onnx.TensorProto]:
        """What the nodes read. What is stored in several forms has its own name, where one of them is read."""
        read = {name for node in nodes for name in node.input}
        taken = read.union(self.inputs, self.outputs, *(node.output for node in nodes))
        tensors, names = [], dict[str, str]()
        for name in [name for name in self.builder.initializers if name in read]:
            tensors.append(self.builder.initializers[name]())
            asked = self.builder.asked.get(name, name)
            if asked not in taken:
                taken.add(asked)
                names[name] = tensors[-1].name = asked
        for node in nodes:
            for index, name in enumerate(node.input):
                node.input[index] = names.get(name, name)
        return tensors

    def _finish_outputs(self) -> None:
        """An output that is an input, a constant or another output as well is a copy of it."""
        for node, name in zip(self.program.outputs, self.outputs, strict=True):
            value = self.builder.values[node]
            if value != name:
                self.builder.begin(node, integer=False)
                copy = self.builder.op("Identity", value)
                self.builder.rename(copy, name, len(self.builder.nodes) - 1)

    def _value_infos(self, made: set[str]) -> list[onnx.ValueInfoProto]:
        infos: dict[str, onnx.ValueInfoProto] = {}
        for value in self.builder.values.values():
            for part in value if isinstance(value, tuple) else (value,):
                if part in made and part not in infos and isinstance(part.fake, Tensor):
                    infos[part] = self._info(part, part.fake)
        return list(infos.values())

    def _info(self, name: str, value: fx.Node | Tensor) -> onnx.ValueInfoProto:
        tensor = value.meta[KEY] if isinstance(value, fx.Node) else value
        shape = shape_of(self.program, tensor)
        return onnx.helper.make_tensor_value_info(str(name), element_type(tensor.dtype), shape)


def _is_stored_otherwise(read: fx.Node, user: fx.Node) -> bool:
    """Whether a user of a tensor stores it as integers under the tensor's name."""
    return any(user.args[place] is read for place in _STORED_ARGUMENTS.get(user.target, ()))


def _no_rule(node: fx.Node) -> tuple[str, str]:
    name = operator_name(node.target)
    if name.startswith("tersor."):
        return "ONNX has no integer operators of tersor's", "lower the program as it was before LowerToInteger"
    hint = f"add Decompose('{name}') before lowering, or register a rule with tersor.backends.onnx.registry.rule"
    return "ONNX has no rule for this operator", hint


def _refused(node: fx.Node, reason: str, hint: str | None) -> Unsupported:
    return Unsupported(node.name, operator_name(node.target), reason, hint, Origin.of(node))


def _live(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
