"""What a program computes from its buffers alone, found by computing it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from tersor.ir.errors import PassError
from tersor.ir.program import REPLACES, Program
from tersor.ir.shapes import KEY

from ..arguments import argument

aten = torch.ops.aten

_UNINITIALIZED = frozenset(
    {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.empty_permuted.default}
    | {aten.new_empty.default, aten.new_empty_strided.default}
)
_READS_SIZES_ONLY = frozenset(
    {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default}
    | {aten.new_zeros.default, aten.new_ones.default, aten.new_full.default}
)
"""Operators that take sizes, dtype and device from their tensor, and no values."""


class Constants:
    """The values of those nodes that are the same in every run. Nodes are shown to it in graph order.

    Trainable parameters, and what is computed from them, are not constant. No value is kept that takes more than
    `growth` bytes and more bytes than what it was computed from.
    """

    def __init__(self, program: Program, growth: int) -> None:
        self.program = program
        self.growth = growth
        self.values: dict[fx.Node, Any] = {}

    def visit(self, node: fx.Node) -> None:
        """Compute the node's value if it is constant."""
        if node.op == "get_attr":
            tensor = self.program.tensor(str(node.target))
            if not isinstance(tensor, nn.Parameter):
                self.values[node] = tensor
        elif node.op == "call_function" and self._inputs_known(node) and repeatable(node) and self._fits(node):
            self.values[node] = computed(node, self._value)

    def store(self) -> int:
        """Give every constant that other nodes use a buffer of its own; returns how many calls that replaces."""
        folded = [node for node in self.values if node.op == "call_function"]
        for node in folded:
            value = self.values[node]
            if isinstance(value, Tensor) and any(user not in self.values for user in node.users):
                stored = value.clone(memory_format=torch.contiguous_format)
                stand_in(self.program, node, node.name, stored, self.values)
        return len(folded)

    def _inputs_known(self, node: fx.Node) -> bool:
        return node.target in _READS_SIZES_ONLY or all(source in self.values for source in node.all_input_nodes)

    def _fits(self, node: fx.Node) -> bool:
        """Whether the result's size is known, and small or no larger than what it is made of."""
        results = node.meta[KEY] if isinstance(node.meta[KEY], list | tuple) else [node.meta[KEY]]
        if not all(isinstance(value, Tensor) and _static(value) for value in results):
            return False
        sources = [self.values.get(source) for source in node.all_input_nodes]
        given = sum(value.nbytes for value in sources if isinstance(value, Tensor))
        return node.target is operator.getitem or sum(value.nbytes for value in results) <= max(self.growth, given)

    def _value(self, node: fx.Node) -> Any:
        if node in self.values:
            return self.values[node]
        fake = node.meta[KEY]
        # A size that changes is one that the result, whose sizes are known, does not depend on: new_ones(x, [1]).
        sizes = [size if type(size) is int else 1 for size in fake.shape]
        return torch.empty((), dtype=fake.dtype, device=fake.device).expand(sizes)


def computed(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """What a call gives for the values of its inputs. Raises PassError where its operator raises anything."""
    target: Any = node.target
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
    try:
        with torch.no_grad():
            return target(*args, **kwargs)
    except Exception as error:  # whatever the operator raises, it raises in every run
        raise PassError(f"computing it from constants failed: {error}", node=node) from error


def stand_in(program: Program, node: fx.Node, name: str, value: Tensor, known: Container[fx.Node]) -> None:
    """Let a tensor of the program, stored under a name like the one given, stand for a node wherever it is read.

    known: the nodes whose values are known too, which go on reading the node itself until they are gone.
    """
    stored = program.add_tensor(name, value)
    with program.graph.inserting_before(node):
        read = program.graph.get_attr(stored)
    read.meta = {**node.meta, REPLACES: node.meta.get(REPLACES, node.name)}
    node.replace_all_uses_with(read, lambda user: user not in known)


def _static(value: Tensor) -> bool:
    return all(type(size) is int for size in value.shape)


def repeatable(node: fx.Node) -> bool:
    """Whether the same inputs always give the same result, and nothing else happens."""
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, OpOverload) or target.namespace != "aten" or target in _UNINITIALIZED:
        return False
    if target is aten.batch_norm.default and argument(node, "training") and argument(node, "running_mean") is not None:
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
