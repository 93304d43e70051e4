"""Carry axes through a whole program: which indices of which tensors can only go together, and what cannot go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..arguments import argument
from .axes import Axis, Form, frozen, leaves
from .flow import Axes, CannotFollowError, Change, Flow, Kind, Rule, SizeOf
from .rules import contraction, elementwise, lookup, movement, reduction

aten = torch.ops.aten

RULES: dict[Any, Rule] = {
    **elementwise.TABLE,
    **movement.TABLE,
    **contraction.TABLE,
    **reduction.TABLE,
    **lookup.TABLE,
}
"""What each operator does to axes. One without a rule that torch calls pointwise is elementwise; any other pins."""

_FIRST_PRIME = 1_000_003
_CARRIES_INDEX = frozenset(movement.MOVES) | {
    aten.clone.default, aten.alias.default, aten.detach.default, aten._to_copy.default, aten.contiguous.default
}  # fmt: skip


@dataclass(frozen=True)
class Dimensions:
    """What the analysis found. It changes nothing, and holds for the program as it is now.

    values: the axes of each node (a tuple of them where it has several results). tensors: those of each parameter and
    buffer by name. edits: what a cut rewrites. minima: axes that have to keep a number of indices, and for whom.
    indices: what a node's values point into, where they are indices.
    """

    values: Mapping[fx.Node, Any]
    tensors: Mapping[str, Axes]
    edits: Sequence[SizeOf | Change]
    minima: Sequence[tuple[Axis, int, fx.Node]]
    kinds: Mapping[Axis, Kind]
    indices: Mapping[fx.Node, Axis] = field(default_factory=dict)

    @cached_property
    def leaves(self) -> tuple[Axis, ...]:
        """The leaves that parameters and buffers are made of, in the order of their first use."""
        found: dict[Axis, None] = {}
        for axes in self.tensors.values():
            for axis in axes:
                found.update(dict.fromkeys(leaves(axis)))
        return tuple(found)

    @property
    def prunable(self) -> tuple[Axis, ...]:
        """The leaves of which indices can go."""
        return tuple(leaf for leaf in self.leaves if not frozen(leaf))

    def kind(self, leaf: Axis) -> Kind:
        """What a leaf stands for."""
        return self.kinds.get(leaf.find(), Kind.WIDTH)


def dimensions(program: Program, *, free_inputs: bool = False, free_outputs: bool = False) -> Dimensions:
    """Analyse a program. Nothing runs and nothing changes.

    free_inputs, free_outputs: they may shrink; both are pinned by default.
    """
    flow = Flow(program, _sizes(program))
    for node in program.graph.nodes:
        flow.axes.blame = node
        if node.op == "placeholder" and free_inputs:
            flow.values[node] = tuple(flow.fresh(size, dim) for dim, size in enumerate(flow.shape(node)))
            _pin_dynamic(flow, node, flow.values[node])
        elif node.op != "output" or not free_outputs:
            flow.values[node] = _visit(flow, node)
    _settle_symbolic(flow)
    tensors = {
        name: flow.tensors[id(tensor)] for name, tensor in program.tensors().items() if id(tensor) in flow.tensors
    }
    return Dimensions(flow.values, tensors, tuple(flow.edits), tuple(flow.minima), _kinds(flow), flow.indices)


def _sizes(program: Program) -> Any:
    """Sizes as numbers, a dynamic dimension as a prime of its own: what it is merged with stays apart."""
    primes = _primes_from(_FIRST_PRIME)
    chosen = {name: next(primes) for name in program.signature.dims}
    return lambda tensor: tuple(program.shapes.evaluate(size, chosen) for size in tensor.shape)


def _primes_from(start: int) -> Iterator[int]:
    number = start
    while True:
        if all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2)):
            yield number
        number += 2


def _visit(flow: Flow, node: fx.Node) -> Any:
    if node.op == "placeholder":
        return tuple(flow.pinned(size, "an input keeps its shape", dim) for dim, size in enumerate(flow.shape(node)))
    if node.op == "get_attr":
        return _read(flow, node)
    if node.op == "output":
        for value in node.all_input_nodes:
            _pin_value(flow, value, "an output keeps its shape")
        return None
    return _call(flow, node)


def _read(flow: Flow, node: fx.Node) -> Axes:
    name = str(node.target)
    tensor = flow.program.tensor(name)
    if id(tensor) not in flow.tensors:
        flow.tensors[id(tensor)] = tuple(Axis(size, f"{name}.{dim}") for dim, size in enumerate(tensor.shape))
    return flow.tensors[id(tensor)]


def _call(flow: Flow, node: fx.Node) -> Any:
    if not _is_tensors(node.meta[KEY]):
        for value in node.all_input_nodes:
            if _is_tensors(value.meta[KEY]):
                _pin_value(flow, value, "a number is read from it")
        return None
    edits = len(flow.edits)
    rule = _rule(node)
    try:
        if rule is None:
            raise CannotFollowError("no rule for this operator")
        result = rule(flow, node)
        _check(flow, node, result)
    except CannotFollowError as error:
        del flow.edits[edits:]
        result = _give_up(flow, node, str(error))
    _follow_indices(flow, node)
    _pin_dynamic(flow, node, result)
    return result


def _rule(node: fx.Node) -> Rule | None:
    found = RULES.get(node.target)
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return elementwise.elementwise
    return found


def _is_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _each(result: Any) -> Sequence[Axes]:
    return result if result and not isinstance(result[0], Axis) else (result,)


def _check(flow: Flow, node: fx.Node, result: Any) -> None:
    """A rule that comes to other sizes than the operator's shape function does not hold here."""
    value = node.meta[KEY]
    shapes = [flow.sizes(item) for item in ([value] if isinstance(value, Tensor) else value)]
    if [tuple(axis.size for axis in axes) for axes in _each(result)] != shapes:
        raise CannotFollowError("its sizes come out otherwise than expected")


def _give_up(flow: Flow, node: fx.Node, why: str) -> Any:
    for value in node.all_input_nodes:
        _pin_value(flow, value, why)
    value = node.meta[KEY]
    results = tuple(
        tuple(flow.pinned(size, why, dim) for dim, size in enumerate(flow.sizes(item)))
        for item in ([value] if isinstance(value, Tensor) else value)
    )
    return results[0] if isinstance(value, Tensor) else results


def _pin_value(flow: Flow, value: fx.Node, why: str) -> None:
    for axes in _each(flow.values.get(value) or ()):
        flow.pin(axes, why)
    if value in flow.indices:
        flow.pin([flow.indices[value]], why)


def _follow_indices(flow: Flow, node: fx.Node) -> None:
    """Values that point into an axis go on doing so where they are only moved; computing with them keeps the axis."""
    for value in node.all_input_nodes:
        target = flow.indices.get(value)
        if target is None or node.target in lookup.READS_INDEX or node.target is lookup.aten.topk.default:
            continue
        if getattr(node.target, "__name__", "") == "getitem" and node.args[1] == 0:
            continue
        if node.target in _CARRIES_INDEX and len(node.all_input_nodes) == 1:
            flow.indices[node] = target
        else:
            flow.pin([target], "its indices are computed with")


def _pin_dynamic(flow: Flow, node: fx.Node, result: Any) -> None:
    value = node.meta[KEY]
    for item, axes in zip([value] if isinstance(value, Tensor) else value, _each(result), strict=True):
        for size, axis in zip(item.shape, axes, strict=True):
            if isinstance(size, torch.SymInt) and axis.find().form is Form.LEAF:
                flow.axes.pin(axis, "its size changes from call to call")


def _settle_symbolic(flow: Flow) -> None:
    """A size that is computed in the graph cannot be rewritten, but one of a reshape's can be left to be found (-1)."""
    computed: dict[tuple[fx.Node, str], list[Axis]] = {}
    for edit in flow.edits:
        if not isinstance(edit, SizeOf) or edit.index is None:
            continue
        if isinstance(argument(edit.node, edit.argument)[edit.index], fx.Node):
            computed.setdefault((edit.node, edit.argument), []).append(edit.axis)
    for (node, name), found in computed.items():
        flow.axes.blame = node
        spare = 1 if node.target is aten.reshape.default and -1 not in argument(node, name) else 0
        changing = [axis for axis in found if not frozen(axis)]
        flow.pin(changing[spare:], "its size is computed in the graph")


_STRONGER = (Kind.HEADS, Kind.HEAD_DIM, Kind.EXPERTS, Kind.RESIDUAL, Kind.WIDTH)


def _kinds(flow: Flow) -> dict[Axis, Kind]:
    found: dict[Axis, Kind] = {}
    for axis, kind in flow.kinds:
        for leaf in leaves(axis):
            found[leaf] = min(found.get(leaf, kind), kind, key=_STRONGER.index)
    return found
