"""Patterns of arithmetic, however it is associated, ordered and divided.

The same formula is written in many ways: `0.5 * x * (1 + erf(x / 1.414))`, `x * (0.5 * (erf(x * 0.707) + 1))`. Here a
product is the bag of what is multiplied, with its numbers gathered in one and what is divided by marked, and a sum is
the bag of what is added. So a formula is one term:

    Product(0.5, X, Sum(1.0, Op(aten.erf.default, Product(0.7071067811865476, X))))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import fx

from tersor.ir.shapes import KEY

from ..arguments import argument
from .rules import Context

aten = torch.ops.aten

PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
_DIVISIONS = frozenset({aten.div.Tensor, aten.div.Scalar})
_SUBTRACTIONS = frozenset({aten.sub.Tensor, aten.sub.Scalar})
_DEEPEST = 6
"""Products of products are looked into so far, so that a node costs the same however long the chain is."""


@dataclass(frozen=True)
class Var:
    """Any node; the same one wherever the name stands."""

    name: str


@dataclass(frozen=True, init=False)
class Op:
    """A call of one of these operators, whose first operands are these terms and whose named arguments are equal.

    `name` is what a match calls the node; where several go by one, they are called with the same options.
    """

    targets: tuple[Any, ...]
    operands: tuple[Term, ...]
    fixed: Mapping[str, object]
    name: str

    def __init__(self, target: Any, *operands: Term, name: str = "", **fixed: object) -> None:
        object.__setattr__(self, "targets", target if isinstance(target, tuple) else (target,))
        object.__setattr__(self, "operands", operands)
        object.__setattr__(self, "fixed", fixed)
        object.__setattr__(self, "name", name)


@dataclass(frozen=True, init=False)
class Product:
    """A product of a number and of terms; a text as number is the name under which a match gives it."""

    number: float | str
    terms: tuple[Term, ...]

    def __init__(self, number: float | str, *terms: Term) -> None:
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "terms", terms)


@dataclass(frozen=True, init=False)
class Sum:
    """A sum of a number and of terms."""

    number: float | str
    terms: tuple[Term, ...]

    def __init__(self, number: float | str, *terms: Term) -> None:
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "terms", terms)


@dataclass(frozen=True)
class Over:
    """In a product, what it is divided by."""

    term: Term


@dataclass(frozen=True, init=False)
class Either:
    """One of several ways to write a term."""

    terms: tuple[Term, ...]

    def __init__(self, *terms: Term) -> None:
        object.__setattr__(self, "terms", terms)


Term: TypeAlias = "Var | Op | Product | Sum | Over | Either"


@dataclass(frozen=True)
class Match:
    """What the names of a pattern stand for, and the calls that it consists of."""

    nodes: Mapping[str, fx.Node]
    numbers: Mapping[str, float]
    calls: frozenset[fx.Node]


def roots(term: Term) -> frozenset[Any]:
    """The operators at whose calls a term may stand."""
    if isinstance(term, Op):
        return frozenset(term.targets)
    if isinstance(term, Either):
        return frozenset().union(*(roots(choice) for choice in term.terms))
    return frozenset(PRODUCTS if isinstance(term, Product) else SUMS if isinstance(term, Sum) else ())


def match(context: Context, term: Term, root: fx.Node) -> Match | None:
    """The term at this call, where nothing outside uses its inner values and all of it has one dtype."""
    for found in _Matcher(context).at(term, root, Match({}, {}, frozenset())):
        inner = found.calls - {root}
        closed = all(user in found.calls for node in inner for user in node.users)
        if closed and found.calls.isdisjoint(found.nodes[name] for name in _variables(term)) and _alike(found, root):
            return found
    return None


def _alike(found: Match, root: fx.Node) -> bool:
    dtype = root.meta[KEY].dtype
    return dtype.is_floating_point and all(n.meta[KEY].dtype is dtype for n in (*found.calls, *found.nodes.values()))


def _variables(term: Term) -> frozenset[str]:
    if isinstance(term, Var):
        return frozenset({term.name})
    if isinstance(term, Over):
        return _variables(term.term)
    inner = term.operands if isinstance(term, Op) else term.terms
    return frozenset().union(*(_variables(part) for part in inner))


@dataclass(frozen=True)
class _Bag:
    """What a product or sum consists of, each leaf with whether it is divided by."""

    number: float
    leaves: tuple[tuple[fx.Node, bool], ...]
    calls: frozenset[fx.Node]


@dataclass(frozen=True)
class _Matcher:
    context: Context

    def at(self, term: Term, node: fx.Node, so_far: Match) -> Iterator[Match]:
        """Every way in which the term stands at the node."""
        if isinstance(term, Var):
            if _same_value(so_far.nodes.get(term.name, node), node):
                yield replace(so_far, nodes={term.name: node, **so_far.nodes})
        elif isinstance(term, Either):
            for choice in term.terms:
                yield from self.at(choice, node, so_far)
        elif isinstance(term, Op):
            yield from self._operator(term, node, so_far)
        elif isinstance(term, Product | Sum):
            yield from self._bag(term, node, so_far)

    def _operator(self, term: Op, node: fx.Node, so_far: Match) -> Iterator[Match]:
        if node.target not in term.targets or any(argument(node, name) != value for name, value in term.fixed.items()):
            return
        known = so_far.nodes.get(term.name, node)
        if known is not node and _options(known, len(term.operands)) != _options(node, len(term.operands)):
            return
        named = {**so_far.nodes, term.name: node} if term.name else so_far.nodes
        so_far = replace(so_far, nodes=named, calls=so_far.calls | {node})
        yield from self._each(term.operands, node.args[: len(term.operands)], so_far)

    def _each(self, terms: Sequence[Term], operands: Sequence[Any], so_far: Match) -> Iterator[Match]:
        if not terms:
            yield so_far
        elif isinstance(operands[0], fx.Node):
            for found in self.at(terms[0], operands[0], so_far):
                yield from self._each(terms[1:], operands[1:], found)

    def _bag(self, term: Product | Sum, node: fx.Node, so_far: Match) -> Iterator[Match]:
        most = len(term.terms)
        bag = self._product(node, most) if isinstance(term, Product) else self._sum(node, most)
        if bag is None or len(bag.leaves) != len(term.terms):
            return
        numbers = self._numbers(term.number, bag.number, so_far.numbers, node)
        if numbers is not None:
            so_far = replace(so_far, numbers=numbers, calls=so_far.calls | bag.calls)
            yield from self._assign(term.terms, bag.leaves, so_far)

    def _numbers(
        self, wanted: float | str, found: float, numbers: Mapping[str, float], node: fx.Node
    ) -> Mapping[str, float] | None:
        if isinstance(wanted, str):
            return {**numbers, wanted: found} if numbers.get(wanted, found) == found else None
        dtype = node.meta[KEY].dtype
        tolerance = 2 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
        return numbers if math.isclose(wanted, found, rel_tol=tolerance) else None

    def _assign(
        self, terms: Sequence[Term], leaves: tuple[tuple[fx.Node, bool], ...], so_far: Match
    ) -> Iterator[Match]:
        """Give every term a leaf of its own."""
        if not terms:
            yield so_far
            return
        for index, (leaf, inverse) in enumerate(leaves):
            for choice in _choices(terms[0]):
                if isinstance(choice, Over) == inverse:
                    inner = choice.term if isinstance(choice, Over) else choice
                    for found in self.at(inner, leaf, so_far):
                        yield from self._assign(terms[1:], leaves[:index] + leaves[index + 1 :], found)

    def _product(self, root: fx.Node, most: int) -> _Bag | None:
        number, leaves, calls = 1.0, list[tuple[fx.Node, bool]](), set[fx.Node]()
        stack: list[tuple[Any, bool, int]] = [(root, False, 0)]
        while stack and len(leaves) <= most:
            value, inverse, depth = stack.pop()
            constant = self.context.number(value)
            if constant is not None:
                if inverse and constant == 0:
                    return None
                number = number / constant if inverse else number * constant
            elif value.target in PRODUCTS and _opens(value, root, depth):
                calls.add(value)
                left, right = value.args[:2]
                stack += [(right, inverse != (value.target in _DIVISIONS), depth + 1), (left, inverse, depth + 1)]
            else:
                leaves.append((value, inverse))
        return _Bag(number, tuple(leaves), frozenset(calls)) if calls else None

    def _sum(self, root: fx.Node, most: int) -> _Bag | None:
        number, leaves, calls = 0.0, list[tuple[fx.Node, bool]](), set[fx.Node]()
        stack: list[tuple[Any, int]] = [(root, 0)]
        while stack and len(leaves) <= most:
            value, depth = stack.pop()
            constant = self.context.number(value)
            addends = self._addends(value) if constant is None and _opens(value, root, depth) else None
            if constant is not None:
                number += constant
            elif addends is not None:
                calls.add(value)
                stack += [(addend, depth + 1) for addend in addends]
            else:
                leaves.append((value, False))
        return _Bag(number, tuple(leaves), frozenset(calls)) if calls else None

    def _addends(self, node: fx.Node) -> tuple[Any, Any] | None:
        """The operands of an addition, or of a subtraction of a number; None for any other call."""
        if node.target not in SUMS or argument(node, "alpha") != 1:
            return None
        left, right = node.args[:2]
        if node.target in _SUBTRACTIONS:
            taken = self.context.number(right)
            return None if taken is None else (-taken, left)
        return right, left


def _opens(node: fx.Node, root: fx.Node, depth: int) -> bool:
    """Whether what a node multiplies or adds belongs to the bag; else the node itself does."""
    return node is root or (len(node.users) == 1 and depth < _DEEPEST)


def _options(node: fx.Node, operands: int) -> tuple[Any, Any]:
    return node.args[operands:], node.kwargs


def _choices(term: Term) -> tuple[Term, ...]:
    return term.terms if isinstance(term, Either) else (term,)


def _same_value(node: fx.Node, other: fx.Node) -> bool:
    return node is other or (node.op == other.op == "get_attr" and node.target == other.target)
