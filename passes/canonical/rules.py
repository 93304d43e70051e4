"""Tables of small rules on single calls, and the one visit that applies them.

A rule looks at a call and at what it reads. A node that only feeds the call may be taken into it, where nobody else
uses it; otherwise a rule never asks who uses what. So when calls are visited in graph order, each after all that it
reads has its final form, one visit is enough. A rule returns the node that stands for the call from now on: another
one, or the call itself where it was changed in place (its result is the same), or None where there is nothing to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from tersor.ir.errors import VerificationError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY, Shape, same, shape_of

from ..progress import track
from .constant_folding import Constants


@dataclass(frozen=True)
class Context:
    """What rules may ask: the program, the values of its constants, and whether training goes on after."""

    program: Program
    constants: Mapping[fx.Node, Any]
    keep_training: bool = False
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def same_type(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether two nodes have the same dtype, sizes and device."""
        left, right = node.meta[KEY], other.meta[KEY]
        return left is right or (left.device == right.device and same(self.program, left, right))

    def shape(self, node: fx.Node) -> Shape:
        """The sizes of a node; a dynamic one as text."""
        return shape_of(self.program, node)

    def tensor(self, value: object) -> Tensor | None:
        """The tensor behind a node that is constant, trainable ones left out."""
        if not isinstance(value, fx.Node):
            return None
        tensor = self.constants.get(value)
        return tensor if isinstance(tensor, Tensor) else None

    def number(self, value: object) -> float | None:
        """A constant operand that is one number."""
        if isinstance(value, bool | int | float):
            return value
        tensor = self.tensor(value)
        return tensor.item() if tensor is not None and tensor.numel() == 1 and not tensor.is_complex() else None

    def call(self, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new call before `like`, which it serves."""
        with self.program.graph.inserting_before(like):
            return self.program.call(target, args, like=like, **kwargs)

    def instead(self, node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node | None:
        """A call that stands for `node`, where the operator takes these arguments and gives a result of its type."""
        before = node.prev
        try:
            new = self.call(node, target, *args, **kwargs)
        except VerificationError:
            new = None
        if new is not None and self.same_type(new, node):
            return new
        while node.prev is not before:
            self.program.graph.erase_node(node.prev)
        return None

    def buffer(self, like: fx.Node, tensor: Tensor) -> fx.Node:
        """A read, before `like`, of a new constant named after it."""
        with self.program.graph.inserting_before(like):
            return self.program.attribute(self.program.add_tensor(f"{like.name}_constant", tensor))

    def once(self, key: fx.Node, make: Callable[[], fx.Node]) -> fx.Node:
        """What `make` gives, made again only where it is gone by now."""
        if key not in self.made or self.made[key]._erased:
            self.made[key] = make()
        return self.made[key]

    def reads(self, name: str) -> int:
        """How many nodes read the tensor of that name."""
        return self._reads[name]

    @cached_property
    def _reads(self) -> Counter[str]:
        return Counter(str(node.target) for node in self.program.graph.nodes if node.op == "get_attr")


Rule = Callable[[Context, fx.Node], "fx.Node | None"]
Table = Iterable[tuple[str, Rule, tuple[Any, ...]]]
"""What the report counts, the rule, the operators on whose calls it is tried."""


@dataclass(frozen=True)
class Rules:
    """Tables joined, by operator. Rules on one operator are tried in order until none applies."""

    by_operator: Mapping[Any, tuple[tuple[str, Rule], ...]] = field(repr=False)

    @classmethod
    def of(cls, *tables: Table) -> Rules:
        """The rules of all tables, those of the first table first."""
        rules: dict[Any, tuple[tuple[str, Rule], ...]] = {}
        for table in tables:
            for label, rule, operators in table:
                for target in operators:
                    rules[target] = (*rules.get(target, ()), (label, rule))
        return cls(rules)

    def visit(
        self,
        context: Context,
        constants: Constants,
        counts: Counter[str],
        title: str,
        fixed: frozenset[fx.Node] = frozenset(),
    ) -> None:
        """Visit every node once, in graph order, but for those that have to stay as they are."""
        for node in track(list(context.program.graph.nodes), title):
            if node not in fixed:
                self._settle(context, constants, counts, node)

    def _settle(self, context: Context, constants: Constants, counts: Counter[str], node: fx.Node) -> None:
        """Apply rules to a node, and to what they make, until none does."""
        while True:
            before, sources = node.prev, node.all_input_nodes
            label, result = self._first(context, node)
            if result is None:
                constants.visit(node)
                return
            counts[label] += 1
            made = _between(before, node)
            if result is not node:
                context.program.replace(node, result)
            remove_unused(context.program.graph, sources)
            for new in made:
                if new is not result and not new._erased:
                    self._settle(context, constants, counts, new)
            if result is not node and result not in made:
                return
            node = result

    def _first(self, context: Context, node: fx.Node) -> tuple[str, fx.Node | None]:
        """What the first rule that applies gives."""
        for label, rule in self.by_operator.get(node.target, ()):
            result = rule(context, node)
            if result is not None:
                return label, result
        return "", None


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes after `first` and before `last`."""
    nodes = []
    while last.prev is not first:
        last = last.prev
        nodes.append(last)
    return nodes[::-1]


def remove_unused(graph: fx.Graph, nodes: Iterable[fx.Node]) -> None:
    """Erase those of the nodes that nobody uses, and what is then unused in turn: else they would count as users."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.users or node.op in ("placeholder", "output") or node._erased:
            continue
        stack += node.all_input_nodes
        graph.erase_node(node)
