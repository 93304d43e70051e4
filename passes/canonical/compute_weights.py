"""Weights that a model computes from its parameters in every call, computed once."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.movement import SELECTIONS
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .constant_folding import computed, repeatable, stand_in
from .equal_calls import merge_equal_calls

aten = torch.ops.aten

_MOVES = frozenset(
    {*SELECTIONS, aten.embedding.default, aten.detach.default, aten.alias.default, aten._to_copy.default}
    | {aten.t.default, aten.numpy_T.default, aten.mT.default}
)
_PARAMETRIZED = re.compile(r"(?P<module>.*\.)?(parametrizations\.(?P<new>\w+)\.original\d*|(?P<old>\w+)_(g|v|orig))")
"""Names that torch.nn.utils gives to what a weight is computed from; the second are of its older functions."""


def compute_weights(program: Program, needed: Container[fx.Node] | None = None) -> int:
    """Replace formulas on parameters by what they give, each a parameter of its own; returns how many.

        %_weight_norm = _weight_norm(@conv.weight_v, @conv.weight_g)
        %conv1d = conv1d(%x, %_weight_norm)                             %conv1d = conv1d(%x, @conv.weight)

    Weight norm, spectral norm, weight standardization and low-rank updates are such formulas: in inference they give
    the same in every call. A formula stays where something else reads its parameters too, where its result takes more
    bytes than they do, where it only moves values, and where sparsity is promised of what it reads.

    needed: nodes that have to go, whatever else reads the parameters and whatever the result takes; formulas with one
        of them are computed, those on constants alone too, and no others. None computes all.
    """
    found = _Formulas(program)
    if needed is not None:
        chosen = [node for node in found.results(constant=True) if any(part in needed for part in found.parts(node))]
    elif (chosen := found.weights()) and merge_equal_calls(program, ()):
        found = _Formulas(program)  # a layer that is called twice computes its weight once
        chosen = found.weights()
    values: dict[fx.Node, Any] = {}
    for node in chosen:
        found.store(node, values)
    if chosen:
        program.graph.eliminate_dead_code()
        program.remove_unused_tensors()
    return len(chosen)


class _Formulas:
    """The nodes that tensors of the program alone decide, and which tensors each reads, by identity."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.reads: dict[fx.Node, frozenset[int]] = {}
        for node in program.graph.nodes:
            if node.op == "get_attr":
                self.reads[node] = frozenset({id(program.tensor(str(node.target)))})
            elif node.op == "call_function" and repeatable(node) and self.reads.keys() >= set(node.all_input_nodes):
                self.reads[node] = frozenset().union(*(self.reads[source] for source in node.all_input_nodes))
        self.parameters = {id(tensor): tensor for tensor in program.parameters().values()}
        self.promised = {id(program.tensor(name)) for name in program.sparsity}

    def results(self, *, constant: bool = False) -> Iterator[fx.Node]:
        """Tensors computed from parameters that something else reads; constant: and those computed from none."""
        for node, reads in self.reads.items():
            outside = any(user not in self.reads for user in node.users)
            known = isinstance(node.meta[KEY], Tensor)
            made = constant or not reads.isdisjoint(self.parameters)
            if node.op == "call_function" and outside and known and made:
                yield node

    def _is_weight(self, node: fx.Node) -> bool:
        """Whether the formula computes, promises no zeros, and gives no more bytes than it reads."""
        reads, value = self.reads[node], node.meta[KEY]
        given = sum(self.parameters[key].nbytes for key in reads & self.parameters.keys())
        computes = any(part.op == "call_function" and part.target not in _MOVES for part in self.parts(node))
        return computes and reads.isdisjoint(self.promised) and value.numel() * value.element_size() <= given

    def weights(self) -> list[fx.Node]:
        """The formulas that give weights, and whose parameters nothing but such formulas reads."""
        chosen = list(filter(self._is_weight, self.results()))
        while True:
            others = self._read_beside(set(chosen))
            kept = [node for node in chosen if others.isdisjoint(self.reads[node] & self.parameters.keys())]
            if len(kept) == len(chosen):
                return kept
            chosen = kept

    def _read_beside(self, chosen: set[fx.Node]) -> set[int]:
        """The tensors that anything reads but the formulas chosen."""
        found: set[int] = set()
        for node, reads in self.reads.items():
            if node not in chosen and any(user not in self.reads for user in node.users):
                found |= reads
        return found

    def parts(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that a formula is made of, each after those that it reads."""
        order: dict[fx.Node, None] = {}
        stack = [(node, False)]
        while stack:
            part, ready = stack.pop()
            if ready:
                order[part] = None
            elif part not in order:
                stack += [(part, True), *((source, False) for source in part.all_input_nodes)]
        return list(order)

    def store(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        """Compute a formula, and read its value as a tensor of the program; `values` holds what is known already."""
        for part in self.parts(node):
            if part not in values:
                values[part] = self._value(part, values)
        value = values[node].clone(memory_format=torch.contiguous_format)
        trained = [self.parameters[key].requires_grad for key in self.reads[node] & self.parameters.keys()]
        if trained and (value.is_floating_point() or value.is_complex()):
            value = nn.Parameter(value, any(trained))
        stand_in(self.program, node, self._name(node), value, self.reads)

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return self.program.tensor(str(node.target))
        return computed(node, values.__getitem__)

    def _name(self, node: fx.Node) -> str:
        """What the weight was called before it was parametrized, else the node's name."""
        names = [str(part.target) for part in self.parts(node) if part.op == "get_attr"]
        for match in filter(None, map(_PARAMETRIZED.fullmatch, names)):
            return f"{match['module'] or ''}{match['new'] or match['old']}"
        return node.name
