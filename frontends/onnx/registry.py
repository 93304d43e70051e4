"""The import rules: one short function an operator, found by domain, name and opset.

    @rule("Swish", domain="com.example")
    def swish(op: Call) -> Value:
        return op.call(aten.silu.default, op.input(0))

`since` and `until`, both inclusive, are the opsets of the domain in which the operator has the form that the rule
reads; an operator whose meaning changed has a rule for each form. Packages outside register theirs the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tersor.ir.errors import TraceError

from .values import Value

if TYPE_CHECKING:
    from .call import Call

Function: TypeAlias = "Callable[[Call], Value | Sequence[Value | None] | None]"
AnyRule = TypeVar("AnyRule", bound=Function)


@dataclass(frozen=True)
class Rule:
    """A function with the opsets that it is right for; `until` None means every later one."""

    function: Function
    since: int
    until: int | None

    def covers(self, opset: int) -> bool:
        return self.since <= opset and (self.until is None or opset <= self.until)

    def overlaps(self, other: Rule) -> bool:
        return self.covers(other.since) or other.covers(self.since)


RULES: dict[tuple[str, str], list[Rule]] = {}
"""(domain, operator) -> its rules. `rule` and `add_rule` add to it."""


def standard(domain: str) -> str:
    """The domain's name in the table: ONNX's own goes by two."""
    return "" if domain == "ai.onnx" else domain


def rule(*operators: str, since: int = 1, until: int | None = None, domain: str = "") -> Callable[[AnyRule], AnyRule]:
    """Register a function as the rule of these operators. Raises TraceError where one has a rule for such an opset."""

    def register(function: AnyRule) -> AnyRule:
        for operator in operators:
            add_rule(operator, function, since=since, until=until, domain=domain)
        return function

    return register


def add_rule(operator: str, function: Function, *, since: int = 1, until: int | None = None, domain: str = "") -> None:
    """Register a rule. Raises TraceError where the operator has one for such an opset already."""
    new = Rule(function, since, until)
    rules = RULES.setdefault((standard(domain), operator), [])
    for old in rules:
        if new.overlaps(old):
            raise TraceError(
                f"{operator} has an import rule already",
                expected="opsets that no other rule covers",
                found=f"opsets {old.since} to {old.until or 'the newest'}: {old.function.__qualname__}",
            )
    rules.append(new)


def find(domain: str, operator: str, opset: int) -> Rule | None:
    """The rule of an operator in that opset of its domain, or None."""
    rules = RULES.get((standard(domain), operator), ())
    return next((rule for rule in rules if rule.covers(opset)), None)
