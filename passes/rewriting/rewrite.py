"""A rewrite that is written as two plain Python functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY, describe, same

from ..base import Pass, PassResult, Promise
from ..tracing import inline, trace_function
from .matching import Match, Number, Pattern, Wildcard, find_matches

_TENSOR = (4, 4)
_NUMBERS: dict[type, tuple[Number, Number]] = {int: (1, 0), float: (0.5, 0.25)}


@dataclass(frozen=True)
class Rewrite(Pass):
    """Replace what one function computes by what another does, wherever it occurs.

        def pattern(x, cap: float):
            return torch.clamp(x, 0.0, cap) / cap

        def replacement(x, cap: float):
            return torch.relu(1 - torch.relu(1 - x / cap))

        Rewrite(pattern, replacement)

    Both functions are traced to ATen. A parameter annotated `float` or `int` is a wildcard: it stands for any constant
    there, the same one wherever the function uses it, and the replacement is called with the constant that was found.
    The pattern hands a wildcard to operators as it is, and computes nothing from it. Every other parameter is a tensor,
    which may be a computed value, an input, a parameter or a buffer. The replacement takes those of the pattern's
    parameters that it needs, by name. Other constants have to be equal, among them the sizes that tracing bakes into
    `reshape` and `expand`: make such a size a wildcard.

    Operands of commutative operators match in either order, and what the pattern computes on the way has no other user.
    Occurrences do not overlap; the first in graph order wins. Batch norm and dropout are matched as they stand, so the
    pattern says whether they train. A branch that the replacement takes on a dynamic size is taken once for all sizes.
    Run Canonicalize first, so that no clone or dropout stands in between.

    pattern, replacement: functions that return a tensor or a tuple of tensors, as many as each other, of equal types.
    examples: what to trace the pattern with, by parameter: a tensor for a tensor (float32[4, 4] where none is given),
        two different values for a wildcard (1 and 0, or 0.5 and 0.25), of which the pattern takes either.
    where: keeps those occurrences for which it returns True.
    approximate: the replacement gives other numbers; without it, the same up to rounding is promised.

    Raises PassError where a function cannot be traced, or returns what does not fit the nodes that it replaces.
    """

    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    examples: Mapping[str, Tensor | tuple[Number, Number]] = field(default_factory=dict)
    where: Callable[[Match], bool] | None = None
    approximate: bool = False

    def __post_init__(self) -> None:
        promise = Promise.APPROXIMATE if self.approximate else Promise.EXACT
        object.__setattr__(self, "promise", promise)
        known = inspect.signature(self.pattern).parameters
        asked = [*inspect.signature(self.replacement).parameters, *self.examples]
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise PassError(
                f"the pattern has no parameter {unknown[0]!r}", expected=", ".join(known), found=", ".join(asked)
            )

    def options(self) -> dict[str, str]:
        """The fields as text; functions by their names."""
        named = {name: getattr(self, name).__name__ for name in ("pattern", "replacement")}
        return super().options() | named

    def run(self, program: Program) -> PassResult:
        """Rewrite every occurrence."""
        matches = self._chosen(find_matches(program.graph, trace_pattern(self.pattern, self.examples)))
        traced: dict[str, fx.GraphModule] = {}
        stands_for: dict[fx.Node, fx.Node] = {}
        rewritten = 0
        for match in matches:
            inputs = {name: stands_for.get(node, node) for name, node in match.inputs.items()}
            place = _place(match, inputs)
            if place is None:
                continue
            module = self._traced(program, match, inputs, traced)
            with program.graph.inserting_before(place):
                results = inline(program, module, list(inputs.values()), match.outputs)
            _check_types(program, match, results)
            stands_for |= dict(zip(match.outputs, results, strict=True))
            _take_away(program, match, results)
            rewritten += 1
        return PassResult(program, rewritten > 0, (f"{self.pattern.__name__} rewritten: {rewritten}",))

    def _chosen(self, matches: list[Match]) -> list[Match]:
        taken: set[fx.Node] = set()
        chosen = []
        for match in matches:
            if taken.isdisjoint(match.calls) and (self.where is None or self.where(match)):
                taken |= match.calls
                chosen.append(match)
        return chosen

    def _traced(
        self, program: Program, match: Match, inputs: Mapping[str, fx.Node], cache: dict[str, fx.GraphModule]
    ) -> fx.GraphModule:
        """The replacement traced on what was found, so that sizes which it reads are this occurrence's."""
        types = [describe(program, node.meta[KEY]) for node in inputs.values()]
        key = f"{types} {match.constants}"
        if key not in cache:
            wanted = inspect.signature(self.replacement).parameters

            def replacement(*tensors: Tensor) -> Any:
                values = {**dict(zip(inputs, tensors, strict=True)), **match.constants}
                return self.replacement(**{name: values[name] for name in wanted})

            with program.shapes.mode:
                fakes = [torch.empty_like(node.meta[KEY]) for node in inputs.values()]
            cache[key] = _trace(replacement, fakes, self.replacement.__name__)
        found = len(cache[key].graph.output_node().args[0])  # type: ignore[arg-type]
        if found != len(match.outputs):
            raise PassError(
                f"{self.replacement.__name__} returns another number of tensors than {self.pattern.__name__}",
                node=match.outputs[0],
                expected=len(match.outputs),
                found=found,
            )
        return cache[key]


def trace_pattern(function: Callable[..., Any], examples: Mapping[str, Any]) -> Pattern:
    """Trace a function to a pattern, as Rewrite describes it.

    Raises PassError where the function cannot be traced, computes with a wildcard, or leaves a parameter out.
    """
    kinds = inspect.get_annotations(function, eval_str=True)
    names = list(inspect.signature(function).parameters)
    wildcards = [Wildcard(name, kinds[name]) for name in names if kinds.get(name) in (int, float)]
    values = {card.name: examples.get(card.name, _NUMBERS[card.kind]) for card in wildcards}
    tensors = {name: examples.get(name, torch.empty(_TENSOR)) for name in names if name not in values}

    def traced(varied: str | None) -> fx.Graph:
        constants = {name: pair[1 if name == varied else 0] for name, pair in values.items()}
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:  # empty_like: one example may be given for several parameters
            fakes = [torch.empty_like(mode.from_tensor(tensor)) for tensor in tensors.values()]
        return _trace(
            lambda *given: function(**dict(zip(tensors, given, strict=True)), **constants), fakes, function.__name__
        ).graph

    graph = traced(None)
    for card in wildcards:
        _mark(graph, traced(card.name), card, values[card.name], function.__name__)
    for node, name in zip(graph.find_nodes(op="placeholder"), tensors, strict=True):
        node.target = name
    _check_pattern(graph, function.__name__)
    return Pattern(graph)


def _trace(function: Callable[..., Any], fakes: list[Tensor], name: str) -> fx.GraphModule:
    try:
        return trace_function(function, fakes)
    except PassError:
        raise
    except Exception as error:  # the function is the user's: it may raise anything at all
        raise PassError(
            f"{name} cannot be traced: {str(error).splitlines()[0] if str(error) else error!r}",
            found=", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in fakes),
            hint="give Rewrite.examples that it takes",
        ) from error


def _mark(graph: fx.Graph, varied: fx.Graph, card: Wildcard, pair: tuple[Number, Number], name: str) -> None:
    """Put the wildcard where two traces, made with two values of it, differ."""
    differing = 0

    def merge(left: Any, right: Any) -> Any:
        nonlocal differing
        if isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
            return type(left)(merge(a, b) for a, b in zip(left, right, strict=True))
        if isinstance(left, fx.Node | Wildcard) or (type(left) is type(right) and left == right):
            return left
        if (left, right) != pair:
            raise PassError(
                f"{name} computes with its wildcard {card.name!r}",
                expected=f"{card.name} handed to operators as it is",
                found=f"{left} and {right}, for {card.name} = {pair[0]} and {pair[1]}",
            )
        differing += 1
        return card

    if [node.target for node in graph.nodes if node.op == "call_function"] != [
        node.target for node in varied.nodes if node.op == "call_function"
    ]:
        raise PassError(f"{name} is another graph for another value of its wildcard {card.name!r}", found=pair)
    for node, other in zip(graph.nodes, varied.nodes, strict=True):
        if node.op == "call_function":
            node.args = merge(node.args, other.args)
            node.kwargs = {key: merge(value, other.kwargs[key]) for key, value in node.kwargs.items()}
    if not differing:
        raise PassError(f"{name} does not use its wildcard {card.name!r}")


def _check_pattern(graph: fx.Graph, name: str) -> None:
    for node in graph.nodes:
        if node.op == "get_attr":
            raise PassError(f"{name} makes a tensor of its own", hint="make it a parameter: it matches any tensor")
        if node.op == "placeholder" and not node.users:
            raise PassError(f"{name} does not use its parameter {node.target!r}")
    returned: Any = graph.output_node().args[0]
    for value in returned:
        if not isinstance(value, fx.Node) or value.op != "call_function":
            raise PassError(f"{name} returns what it did not compute", expected="results of operators", found=value)


def _place(match: Match, inputs: Mapping[str, fx.Node]) -> fx.Node | None:
    """A node before which the inputs are all there and none of the results was used; None where there is no such."""
    outside = [user for output in match.outputs for user in output.users if user not in match.calls]
    for place in (min(match.outputs), min(outside, default=None)):
        if place is not None and all(node < place for node in inputs.values()):
            return place
    return None


def _check_types(program: Program, match: Match, results: tuple[fx.Node, ...]) -> None:
    for old, new in zip(match.outputs, results, strict=True):
        if not same(program, old.meta[KEY], new.meta[KEY]):
            raise PassError(
                "the replacement has another type than what it replaces",
                node=old,
                expected=describe(program, old.meta[KEY]),
                found=describe(program, new.meta[KEY]),
            )


def _take_away(program: Program, match: Match, results: tuple[fx.Node, ...]) -> None:
    for old, new in zip(match.outputs, results, strict=True):
        old.replace_all_uses_with(new, lambda user: user not in match.calls)
    for node in sorted(match.calls, reverse=True):
        program.graph.erase_node(node)
