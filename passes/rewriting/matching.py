"""Where a small graph of operators occurs in a large one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..arguments import arguments

aten = torch.ops.aten
Number = int | float

COMMUTATIVE = frozenset(
    {aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other}
    | {aten.eq.Tensor, aten.ne.Tensor, aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default}
    | {aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor}
    | {aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor}
)
"""Operators whose first two operands may stand in either order (add: where its alpha is 1)."""

_WITHOUT_EFFECT = frozenset({"pin_memory", "non_blocking", "cudnn_enable", "cudnn_enabled"})
"""Arguments that say how to compute and not what."""


@dataclass(frozen=True)
class Wildcard:
    """Stands in a pattern's arguments for any constant of its kind: an int, or a float (or int); never a bool."""

    name: str
    kind: type[int] | type[float]

    def accepts(self, value: object) -> bool:
        """Whether it may stand for this value."""
        numbers = (int,) if self.kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)


@dataclass(frozen=True)
class Pattern:
    """A graph to look for.

    graph: its placeholders match any tensor, whether computed, input or parameter; it returns a tuple of calls.
        Arguments may hold Wildcards; every other constant has to be equal.
    """

    graph: fx.Graph

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes that the pattern returns."""
        return tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Match:
    """One occurrence: what each of the pattern's nodes stands for, and the constants behind its wildcards."""

    pattern: Pattern
    nodes: Mapping[fx.Node, fx.Node]
    constants: Mapping[str, Number]

    @property
    def inputs(self) -> dict[str, fx.Node]:
        """The node behind each of the pattern's placeholders, by its name."""
        return {str(node.target): found for node, found in self.nodes.items() if node.op == "placeholder"}

    @property
    def calls(self) -> frozenset[fx.Node]:
        """The calls that a rewrite takes away."""
        return frozenset(found for node, found in self.nodes.items() if node.op == "call_function")

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes behind what the pattern returns."""
        return tuple(self.nodes[node] for node in self.pattern.outputs)


def find_matches(graph: fx.Graph, pattern: Pattern) -> list[Match]:
    """Every occurrence of the pattern in graph order, overlapping ones included.

    Commutative operators match with their operands in either order; arguments left out equal their defaults. Where
    several bindings fit at one place, the first is taken. A node that the pattern does not return is used within the
    occurrence alone, so that it can be replaced as a whole.
    """
    first = pattern.outputs[0]
    found = (_match_at(node, pattern) for node in graph.find_nodes(op="call_function", target=first.target))
    return [match for match in found if match is not None]


def _match_at(anchor: fx.Node, pattern: Pattern) -> Match | None:
    for binding in _bind_outputs(pattern.outputs, anchor, _Binding({}, {})):
        match = Match(pattern, binding.nodes, binding.constants)
        if _closed(match):
            return match
    return None


def _closed(match: Match) -> bool:
    """Whether it can be taken away: nothing outside uses its inner nodes, and it does not feed itself."""
    calls, outputs = match.calls, set(match.outputs)
    return calls.isdisjoint(match.inputs.values()) and all(
        user in calls for node in calls - outputs for user in node.users
    )


@dataclass(frozen=True)
class _Binding:
    nodes: Mapping[fx.Node, fx.Node]
    constants: Mapping[str, Number]

    def with_node(self, wanted: fx.Node, found: fx.Node) -> _Binding:
        return _Binding({**self.nodes, wanted: found}, self.constants)

    def with_constant(self, name: str, value: Number) -> _Binding:
        return _Binding(self.nodes, {**self.constants, name: value})


def _bind_outputs(outputs: tuple[fx.Node, ...], anchor: fx.Node | None, binding: _Binding) -> Iterator[_Binding]:
    """Bind the outputs one after another; the first at `anchor`, others among what the bound nodes lead to."""
    if not outputs:
        yield binding
        return
    wanted, *rest = outputs
    candidates = [anchor] if anchor is not None else _candidates(wanted, binding)
    for candidate in candidates:
        for bound in _bind(wanted, candidate, binding):
            yield from _bind_outputs(tuple(rest), None, bound)


def _candidates(wanted: fx.Node, binding: _Binding) -> Iterable[fx.Node]:
    """The calls of `wanted`'s operator that bound nodes lead to, in no more steps than the pattern has nodes."""
    if wanted in binding.nodes:
        return [binding.nodes[wanted]]
    reached = dict.fromkeys(binding.nodes.values())
    frontier = list(reached)
    for _ in range(len(wanted.graph.nodes)):
        frontier = [user for node in frontier for user in node.users if user not in reached]
        reached |= dict.fromkeys(frontier)
    return [node for node in reached if node.target == wanted.target]


def _bind(wanted: Any, found: Any, binding: _Binding) -> Iterator[_Binding]:
    """Every way to let `found`, an argument or a node of the graph, stand for `wanted`, one of the pattern."""
    if isinstance(wanted, fx.Node):
        if isinstance(found, fx.Node):
            yield from _bind_node(wanted, found, binding)
    elif isinstance(wanted, Wildcard):
        if wanted.accepts(found) and binding.constants.get(wanted.name, found) == found:
            yield binding.with_constant(wanted.name, found)
    elif isinstance(wanted, list | tuple):
        if isinstance(found, list | tuple) and len(wanted) == len(found):
            yield from _bind_all(list(wanted), list(found), binding)
    elif _equal(wanted, found):
        yield binding


def _bind_node(wanted: fx.Node, found: fx.Node, binding: _Binding) -> Iterator[_Binding]:
    if wanted in binding.nodes:
        if _same_value(binding.nodes[wanted], found):
            yield binding
        return
    if wanted.op == "placeholder":
        yield binding.with_node(wanted, found)
        return
    if found.op != "call_function" or found.target != wanted.target:
        return
    left, right = _arguments(wanted), _arguments(found)
    yield from _bind_all(left, right, binding.with_node(wanted, found))
    if wanted.target in COMMUTATIVE and left[2:] in ([], [1]):
        yield from _bind_all([left[1], left[0], *left[2:]], right, binding.with_node(wanted, found))


def _same_value(node: fx.Node, other: fx.Node) -> bool:
    return node is other or (node.op == other.op == "get_attr" and node.target == other.target)


def _bind_all(wanted: list[Any], found: list[Any], binding: _Binding) -> Iterator[_Binding]:
    if len(wanted) != len(found):
        return
    if not wanted:
        yield binding
        return
    for bound in _bind(wanted[0], found[0], binding):
        yield from _bind_all(wanted[1:], found[1:], bound)


def _arguments(node: fx.Node) -> list[Any]:
    """A call's arguments in the order of its schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*node.args, *node.kwargs.values()]
    return [value for name, value in arguments(node).items() if name not in _WITHOUT_EFFECT]


def _equal(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    if isinstance(wanted, float) and isinstance(found, float) and math.isnan(wanted):
        return math.isnan(found)
    return type(wanted == found) is bool and wanted == found
