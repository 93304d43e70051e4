"""A Python function as ATen operators, in the form that the IR has: functional, views as reshape, whole operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from tersor.ir import opaque
from tersor.ir.program import REPLACES, Program

aten = torch.ops.aten

_SAME_AS = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.lift_fresh_copy.default: aten.clone.default,
}


def trace_function(function: Callable[..., Any], inputs: Sequence[Tensor], *, composite: bool = True) -> fx.GraphModule:
    """Trace a function of tensors.

    inputs: fake tensors of one mode, no two of them the same object; sizes that are symbols stay symbols, others are
        baked in where the function uses them (`x.reshape(x.shape[0], -1)`).
    composite: keep operators that torch defines by others, such as linear and layer_norm, as frontends do.

    Returns a module whose graph has a placeholder for each input and returns a tuple; tensors that the function makes
    from data are attributes. Raises whatever the function raises on such inputs.
    """
    traced = make_fx(function, pre_dispatch=composite)(*inputs)
    opaque.hide(traced.graph)
    traced.recompile()
    functional = dispatch_functionalize(traced, mode=FunctionalTensorMode(pre_dispatch=True, export=True))
    traced = make_fx(functional, pre_dispatch=True)(*inputs)
    opaque.reveal(traced.graph)
    _normalize(traced.graph)
    return traced


def _normalize(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        node.target = _SAME_AS.get(node.target, node.target)
        if node.target is torch.ops.prims.convert_element_type.default:
            node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}
        if isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns:
            graph.erase_node(node)
    returned = graph.output_node()
    if not isinstance(returned.args[0], list | tuple):
        returned.args = ((returned.args[0],),)
    graph.eliminate_dead_code()


def inline(
    program: Program, traced: fx.GraphModule, inputs: Sequence[fx.Node], replaced: Sequence[fx.Node]
) -> tuple[fx.Node, ...]:
    """Insert a traced graph at the insertion point of the program's graph.

    replaced: the nodes that the traced graph's results stand for; the new nodes carry the origin of the first.
    Returns the results.
    """
    values: dict[fx.Node, fx.Node] = {}
    places = iter(inputs)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(places)
        elif node.op == "get_attr":
            tensor = getattr(traced, str(node.target)).detach()
            values[node] = program.attribute(program.add_tensor(f"{replaced[0].name}_constant", tensor))
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = program.call(node.target, args, like=replaced[0], **kwargs)
            del values[node].meta[REPLACES]
    results = tuple(values[node] for node in traced.graph.output_node().args[0])  # type: ignore[union-attr, index]
    for result, old in zip(results, replaced, strict=True):
        if result not in inputs:
            result.meta[REPLACES] = old.meta.get(REPLACES, old.name)
    return results
