"""What the names of a graph, a sub-graph or a function's body stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto

from tersor.ir.errors import TraceError
from tersor.ir.names import TRAINED

from .registry import standard
from .tensors import Reader
from .values import Known, Value


class Scope:
    """Names in one graph. A sub-graph sees those of the graph around it; a function's body sees its own alone.

    attributes: what `ref_attr_name` means in a function's body.
    """

    def __init__(
        self,
        reader: Reader,
        opsets: Mapping[str, int],
        values: Mapping[str, Value],
        *,
        nodes: Iterable[NodeProto] = (),
        outputs: Iterable[str] = (),
        initializers: Iterable[TensorProto] = (),
        outer: Scope | None = None,
        attributes: Mapping[str, AttributeProto] | None = None,
        read: dict[str, Known] | None = None,
    ) -> None:
        self.reader = reader
        self.opsets = opsets
        self.outer = outer
        self.values = dict(values)
        self._attributes = attributes or {}
        self._read_before = {} if read is None else read
        self._initializers = {tensor.name: tensor for tensor in initializers}
        self._readers = Counter(name for node in nodes for name in node.input)
        self._readers.update(outputs)

    def child(self, graph: GraphProto, values: Mapping[str, Value], read: dict[str, Known]) -> Scope:
        """The scope of a sub-graph. `read` keeps its initializers from one turn of a loop to the next."""
        return Scope(
            self.reader,
            self.opsets,
            values,
            nodes=graph.node,
            outputs=[value.name for value in graph.output],
            initializers=graph.initializer,
            outer=self,
            attributes=self._attributes,
            read=read,
        )

    def body(
        self, function: FunctionProto, values: Mapping[str, Value], attributes: Mapping[str, AttributeProto]
    ) -> Scope:
        """The scope of a function's body."""
        opsets = {standard(entry.domain): entry.version for entry in function.opset_import}
        return Scope(
            self.reader,
            {**self.opsets, **opsets},
            values,
            nodes=function.node,
            outputs=function.output,
            attributes=attributes,
        )

    def lookup(self, name: str) -> Value:
        """What a name stands for. Raises TraceError where nothing before gives it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            if name in scope._initializers:
                return scope._read(name)
            scope = scope.outer
        raise TraceError(
            f"reads {name!r}, which no input, initializer or earlier node gives",
            expected="nodes in order, each after what it reads, without cycles",
        )

    def define(self, name: str, value: Value) -> None:
        """Let a name stand for a value. Raises TraceError where it stands for another already."""
        if name in self.values or name in self._initializers:
            raise TraceError(f"gives {name!r}, which stands for another value already", expected="each name given once")
        self.values[name] = value

    def readers(self, name: str) -> int:
        """How many read a name, the graph's outputs among them; sub-graphs count as many."""
        return self._readers[name] if self.outer is None or name in self.values else 2

    def opset(self, domain: str) -> int:
        """The opset of a domain; 0 where the file names none."""
        return self.opsets.get(standard(domain), 0)

    def attributes_of(self, node: NodeProto) -> Iterable[AttributeProto]:
        """A node's attributes, those of the function's caller in place of references to them."""
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                yield attribute
            elif attribute.ref_attr_name in self._attributes:
                resolved = AttributeProto()
                resolved.CopyFrom(self._attributes[attribute.ref_attr_name])
                resolved.name = attribute.name
                yield resolved

    def _read(self, name: str) -> Known:
        """An initializer, read when it is first used. Those that can be trained become parameters."""
        proto = self._initializers.pop(name)
        if name not in self._read_before:
            tensor = self.reader.read(proto, once=self.outer is None)
            fixed = any((note.key, note.value) == (TRAINED, "no") for note in proto.metadata_props)
            trainable = tensor.is_floating_point() and tensor.dim() > 0 and not fixed
            self._read_before[name] = Known(tensor, name, trainable, proto.data_type)
        self.values[name] = self._read_before[name]
        return self._read_before[name]
