"""Walking an ONNX graph node by node: rules, functions and sub-graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from onnx import FunctionProto, GraphProto, NodeProto

from tersor.ir.errors import TersorError, TraceError

from .call import Call
from .importer import Importer
from .reasons import reason
from .registry import find, standard
from .scope import Scope
from .standard_functions import expansion
from .values import Value

_DEEPEST = 64
"""Functions and sub-graphs within each other."""


class Interpreter:
    """Imports the nodes of one file, in order."""

    def __init__(self, importer: Importer) -> None:
        self.importer = importer
        self.file = importer.file
        self.depth = 0

    def graph(self) -> list[Value]:
        """Import the file's graph; what its outputs stand for."""
        graph = self.file.graph
        given = zip(self.file.inputs, self.importer.program.placeholders, strict=True)
        values: dict[str, Value] = {value.name: node for value, node in given}
        scope = Scope(
            self.importer.reader,
            self.file.opsets,
            values,
            nodes=graph.node,
            outputs=[value.name for value in graph.output],
            initializers=graph.initializer,
        )
        return self.run(graph, scope)

    def run(self, graph: GraphProto, scope: Scope) -> list[Value]:
        """Import a graph's nodes; what its outputs stand for."""
        self.importer.budget.spend(1 + (len(graph.input) + len(graph.initializer)) // 32)
        self._nodes(graph.node, scope)
        return self._outputs([value.name for value in graph.output], scope)

    def _outputs(self, names: Sequence[str], scope: Scope) -> list[Value]:
        try:
            return [scope.lookup(name) for name in names]
        except TraceError as error:
            raise TraceError(f"{self.file.path}: an output {error.what}", expected=error.expected) from None

    def _nodes(self, nodes: Sequence[NodeProto], scope: Scope) -> None:
        if self.depth >= _DEEPEST:
            what = "functions call each other too deeply, or themselves, or branches do"
            raise TraceError(what, found=f"{_DEEPEST} levels")
        self.depth += 1
        for node in nodes:
            with self._within(node):
                results = self._results(node, scope)
                self._define(node, scope, results)
        self.depth -= 1

    @contextmanager
    def _within(self, node: NodeProto) -> Iterator[None]:
        """Say of an error, whatever it is, which node of which file it is about; once, for the innermost."""
        outer, self.importer.origin = self.importer.origin, replace(self.importer.origin, module=_label(node))
        try:
            self.importer.budget.spend(1)
            yield
        except _Located:
            raise
        except TersorError as error:
            raise self._located(node, error.what, error.expected, error.found, error.hint) from error
        except Exception as error:  # a rule fed with nonsense may raise anything at all
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._located(node, f"does not fit its operator: {text}", None, None, None) from error
        finally:
            self.importer.origin = outer

    def _located(self, node: NodeProto, what: str, expected: object, found: object, hint: str | None) -> TraceError:
        where = f"{self.file.path}: node {_label(node)!r} ({_operator(node)})"
        return _Located(f"{where}: {what}", node=_label(node), expected=expected, found=found, hint=hint)

    def _results(self, node: NodeProto, scope: Scope) -> Sequence[Value | None]:
        opset = scope.opset(node.domain)
        rule = find(node.domain, node.op_type, opset)
        own = self.file.functions.get((standard(node.domain), node.op_type))
        if own is not None and (rule is None or not standard(node.domain)):
            return self._call_function(own, node, scope)
        call = Call(self.importer, scope, node, self.run)
        result = None if rule is None else rule.function(call)
        if result is not None:
            return result if isinstance(result, list) else [cast("Value", result)]
        function = expansion(call)
        if function is None:
            raise self._unknown(node, opset)
        return self._call_function(function, node, scope)

    def _unknown(self, node: NodeProto, opset: int) -> TraceError:
        why = reason(standard(node.domain), node.op_type)
        return TraceError(
            f"there is no import rule for {_operator(node)}{f': {why}' if why else ''}",
            expected="an operator with a rule, or a function of the model",
            found=f"opset {opset}" if opset else "no opset of that domain in the file",
            hint="register one: @tersor.frontends.onnx.registry.rule"
            f"({node.op_type!r}{f', domain={node.domain!r}' if node.domain else ''})",
        )

    def _call_function(self, function: FunctionProto, node: NodeProto, scope: Scope) -> Sequence[Value | None]:
        """Import a function's body in place of the call."""
        given = zip(function.input, node.input, strict=False)
        values = {formal: scope.lookup(actual) for formal, actual in given if actual}
        attributes = {attribute.name: attribute for attribute in function.attribute_proto}
        attributes |= {attribute.name: attribute for attribute in scope.attributes_of(node)}
        body = scope.body(function, values, attributes)
        self._nodes(function.node, body)
        wanted = zip(function.output, [*node.output, *[""] * len(function.output)], strict=False)
        return [body.lookup(name) if name_here else None for name, name_here in wanted]

    def _define(self, node: NodeProto, scope: Scope, results: Sequence[Value | None]) -> None:
        for index, name in enumerate(node.output):
            if name:
                value = results[index] if index < len(results) else None
                if value is None:
                    raise TraceError(f"output {index} ({name!r}) is not computed by the import rule")
                scope.define(name, self.importer.named(value, name))
        self.importer.fresh.clear()


class _Located(TraceError):  # noqa: N818  # shown to people as the TraceError that it is
    """An error that names its node."""


def _operator(node: NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _label(node: NodeProto) -> str:
    """What a person calls the node: its name, or that of its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)
