"""Chosen operators as what torch defines them by."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.attention import SDPBackend, sdpa_kernel

from tersor.ir.errors import PassError
from tersor.ir.printer import operator_name
from tersor.ir.program import Program
from tersor.ir.shapes import KEY, describe

from ..base import Pass, PassResult
from ..tracing import inline, trace_function


@dataclass(frozen=True)
class Decompose(Pass):
    """Replace chosen operators by the operators that torch defines them by, for targets that lack them.

        Decompose(("aten.silu",))

        %silu = silu(%x)        %sigmoid = sigmoid(%x)
                                %mul = mul.Tensor(%x, %sigmoid)

    operators: names as `print(program)` writes them; one without an overload, such as `aten.softmax`, means all of its
        overloads. Where the definition of one uses another of them, that one is decomposed too: layer_norm is defined
        by native_layer_norm, so ask for both to see its arithmetic. Others are left whole.

    Raises PassError for a name that torch does not know, one that it defines by nothing else, or a definition that
    writes to its inputs.
    """

    operators: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.operators:
            if not any(_definition(target) for target in _overloads(name)):
                raise PassError(f"torch defines {name} by no other operators", hint="leave it whole")

    def run(self, program: Program) -> PassResult:
        """Decompose until none of the chosen operators is left."""
        chosen = {target for name in self.operators for target in _overloads(name)}
        pending = [node for node in program.graph.nodes if node.target in chosen]
        counts: Counter[str] = Counter()
        traced: dict[str, fx.GraphModule] = {}
        while pending:
            node = pending.pop()
            counts[operator_name(node.target)] += 1
            pending += [new for new in _decompose(program, node, traced) if new.target in chosen]
        notes = tuple(f"{name} decomposed: {count}" for name, count in sorted(counts.items()))
        return PassResult(program, bool(counts), notes)


@cache
def _overloads(name: str) -> tuple[OpOverload, ...]:
    """The operators that a name means. Raises PassError, saying what was perhaps meant."""
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    known = f"{namespace}::{base}" in _names()
    packet = getattr(getattr(torch.ops, namespace), base) if known else None
    if not isinstance(packet, OpOverloadPacket) or (overload and overload not in packet.overloads()):
        names = [entry.replace("::", ".") for entry in _names()]
        if packet is not None:
            names = [f"{namespace}.{base}.{entry}" for entry in packet.overloads()]
        close = difflib.get_close_matches(name, names, n=3) or difflib.get_close_matches(f"aten.{name}", names, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "write it as print(program) does, such as aten.silu"
        raise PassError(f"there is no operator {name!r}", hint=hint)
    entries = [overload] if overload else packet.overloads()
    return tuple(getattr(packet, entry) for entry in entries if _dispatched(f"{namespace}::{base}", entry))


@cache
def _names() -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in _every_name())


@cache
def _every_name() -> frozenset[str]:
    return frozenset(torch._C._dispatch_get_all_op_names())


def _dispatched(name: str, overload: str) -> bool:
    """Whether an overload is on tensors; others, such as that of `angle` on a number, are TorchScript's alone."""
    return (name if overload == "default" else f"{name}.{overload}") in _every_name()


def _definition(target: OpOverload) -> Callable[..., Any] | None:
    """torch's Python definition of an operator, or the operator itself where torch's own kernel calls others."""
    if target in decomposition_table:
        return decomposition_table[target]
    return target if target._can_decompose() else None


def _decompose(program: Program, node: fx.Node, cache: dict[str, fx.GraphModule]) -> list[fx.Node]:
    """Replace one call; returns the calls that came in its place."""
    several = isinstance(node.meta[KEY], list | tuple)
    replaced = list(node.users) if several else [node]
    sources = node.all_input_nodes
    picked = [user.args[1] for user in replaced] if several else None
    key = _key(program, node, sources, picked)
    if key not in cache:
        cache[key] = _trace(program, node, sources, picked)
    before = node.prev
    with program.graph.inserting_before(node):
        results = inline(program, cache[key], sources, replaced)
    made = list(itertools.takewhile(lambda new: new is not node, _following(before)))
    for old, new in zip(replaced, results, strict=True):
        program.replace(old, new)
    if several:
        program.graph.erase_node(node)
    return made


def _key(program: Program, node: fx.Node, sources: list[fx.Node], picked: list[Any] | None) -> str:
    """What the trace of a call depends on: the operator, the types of its inputs, its other arguments."""
    types = [describe(program, source.meta[KEY]) for source in sources]
    others = fx.node.map_arg((node.args, node.kwargs), lambda n: f"#{sources.index(n)}")
    return f"{node.target} {types} {others} {picked}"


def _following(node: fx.Node) -> Iterator[fx.Node]:
    while True:
        node = node.next
        yield node


def _trace(program: Program, node: fx.Node, sources: list[fx.Node], picked: list[Any] | None) -> fx.GraphModule:
    target: Any = node.target
    definition = _definition(target)
    if definition is None:
        raise PassError(f"torch defines {operator_name(target)} by no other operators", node=node)

    def function(*values: Any) -> Any:
        known = dict(zip(sources, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
        with sdpa_kernel(SDPBackend.MATH):
            result = definition(*args, **kwargs)
        return result if picked is None else tuple(result[index] for index in picked)

    values = [source.meta[KEY] for source in sources]
    with program.shapes.mode:
        fakes = [torch.empty_like(value) if isinstance(value, Tensor) else value for value in values]
    try:
        traced = trace_function(function, fakes, composite=False)
    except Exception as error:  # a definition may raise anything at all
        raise PassError(f"{operator_name(target)} cannot be decomposed here: {error}", node=node) from error
    _check(traced.graph, node)
    return traced


def _check(graph: fx.Graph, node: fx.Node) -> None:
    for made in graph.nodes:
        target = made.target
        if not isinstance(target, OpOverload):
            continue
        if target is node.target or target.namespace != "aten" or target._schema.is_mutable:
            raise PassError(
                f"torch's definition of {operator_name(node.target)} does not fit the IR",
                node=node,
                expected="other functional operators of aten",
                found=operator_name(target),
            )
