"""The emission rules: one short function an operator, which packages outside may add to.

    @rule(torch.ops.mylib.swish.default)
    def swish(b: Builder, x: Value, beta: float) -> str:
        return b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, b.number(beta, x.dtype))))

A rule is called with the builder and the operator's arguments: positional parameters take them in the order of the
schema, keyword-only ones by name, and what a rule does not name it does not get. Tensors and symbolic sizes come as
`Value`, all else as in the graph. It returns the name of the result, or a tuple of names, and raises `Refusal` where
it cannot express what it is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import fx
from torch._ops import OpOverload

from tersor.ir.errors import LoweringError
from tersor.passes.arguments import arguments

F = TypeVar("F", bound=Callable[..., Any])


class Refusal(Exception):  # noqa: N818  # not an error: how a rule says no
    """A rule does not take these arguments: the reason, and what to try."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True)
class Rule:
    """A function with the names of its parameters after the builder."""

    function: Callable[..., Any]
    positional: int
    named: tuple[str, ...]

    def call(self, builder: Any, node: fx.Node, resolve: Callable[[Any], Any]) -> Any:
        """Call the function for a node; `resolve` turns the graph's arguments into the rule's."""
        if not isinstance(node.target, OpOverload):
            return self.function(builder, *resolve(node.args))
        given = arguments(node)
        positional = list(given.values())[: self.positional]
        return self.function(builder, *resolve(positional), **resolve({name: given[name] for name in self.named}))


RULES: dict[Any, Rule] = {}
"""Operator -> rule. `rule` adds to it."""


def rule(*targets: Any) -> Callable[[F], F]:
    """Register a function as the rule of these operators. Raises LoweringError where one has a rule already."""

    def register(function: F) -> F:
        for target in targets:
            add_rule(target, function)
        return function

    return register


def add_rule(target: Any, function: Callable[..., Any]) -> None:
    """Register a rule. Raises LoweringError where the operator has one already."""
    if target in RULES:
        raise LoweringError(
            f"{target} has an ONNX rule already", found=RULES[target].function.__qualname__, hint="remove it first"
        )
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    RULES[target] = Rule(function, sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters), named)
