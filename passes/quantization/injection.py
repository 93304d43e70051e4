"""What an error at one node does to the outputs: its value is replaced, and what depends on it computed again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.program import Program

from .roles import WEIGHTS, Role, roles

QUANTIZERS = frozenset({FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC})
"""Operators that put their first argument on a grid."""


_EXPLAINED = 0.25
"""Where scaling channels takes away three quarters of a difference, the difference is a scale and not an error."""


class Injection:
    """A program with every grid left out, run once on one batch, all its values kept.

    reference: values by node name that stand in place of those that layers with weights give, as they are in the float
        program: what a node reads is then free of the errors before it. Smoothing scales channels of some; those are
        scaled the same way. A value that is not recognizably the same is left aside.
    """

    def __init__(
        self, program: Program, inputs: Sequence[Tensor], reference: Mapping[str, Tensor] | None = None
    ) -> None:
        self.program = program
        self.nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        self.values: dict[fx.Node, Any] = dict(zip(program.placeholders, inputs, strict=True))
        for node in program.graph.find_nodes(op="get_attr"):
            self.values[node] = program.tensor(str(node.target)).detach()
        self.exact: dict[fx.Node, Any] = dict(self.values)
        with torch.no_grad():
            for node in self.nodes:
                self.values[node] = self._call(node, self.values)
            for node in self.nodes:
                found = (reference or {}).get(node.name) if node.target in WEIGHTS else None
                self.exact[node] = self._call(node, self.exact)
                if found is not None:
                    self.exact[node] = _recognized(found, self.exact[node])

    def quantized(self, node: fx.Node) -> Any:
        """The value of one node whose own arguments are on their grids, everything before it exact."""
        seen = dict(self.exact)
        with torch.no_grad():
            for source in node.all_input_nodes:
                for quantizer in _chain(source):
                    seen[quantizer] = _run(quantizer, seen)
            return _run(node, seen)

    def output_errors(self, node: fx.Node, value: Any) -> list[Tensor]:
        """How far each output moves where a node has `value` instead of its exact one."""
        error = value.double() - self.exact[node].double()
        changed: dict[fx.Node, Any] = {node: (self.values[node].double() + error).to(value.dtype)}
        started = False
        with torch.no_grad():
            for other in self.nodes:
                started = started or other is node
                if started and other is not node and any(source in changed for source in other.all_input_nodes):
                    seen = {source: changed.get(source, self.values[source]) for source in other.all_input_nodes}
                    changed[other] = self._call(other, seen)
        outputs = self.program.outputs
        return [
            changed[output].double() - self.values[output].double()
            if output in changed and output.meta["val"].is_floating_point()
            else torch.zeros((), dtype=torch.float64)
            for output in outputs
        ]

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        return values[node.args[0]] if node.target in QUANTIZERS else _run(node, values)  # type: ignore[index]


def quantizers_of(node: fx.Node) -> list[fx.Node]:
    """The quantizers whose grids an operator reads, directly or through moves; none of a quantizer or a move itself."""
    if node.op != "call_function" or node.target in QUANTIZERS or _moves(node):
        return []
    return [chain[0] for source in node.all_input_nodes if (chain := _chain(source))]


def _chain(source: fx.Node) -> list[fx.Node]:
    """The quantizers and the moves between a quantizer and what reads it, first the quantizer."""
    chain: list[fx.Node] = []
    node = source
    while node.op == "call_function":
        chain.insert(0, node)
        if node.target in QUANTIZERS:
            return chain
        if not _moves(node) or not isinstance(node.args[0], fx.Node):
            return []
        node = node.args[0]
    return []


def _moves(node: fx.Node) -> bool:
    return node.target in roles(Role.MOVE)


def _recognized(found: Tensor, value: Any) -> Any:
    """A layer's value in the float program, channels scaled as in `value`; `value` where the two are not the same."""
    if not isinstance(value, Tensor) or found.shape != value.shape or not value.is_floating_point() or not value.dim():
        return value
    noise = float((found - value).square().sum())
    if not math.isfinite(noise) or noise == 0:
        return value
    for dim in {value.dim() - 1, min(1, value.dim() - 1)}:
        others = [d for d in range(value.dim()) if d != dim]
        scale = (found * value).sum(others, keepdim=True) / found.square().sum(others, keepdim=True).clamp(min=1e-30)
        if float((found * scale - value).square().sum()) < _EXPLAINED * noise:
            return found * scale
    return found if noise <= 0.5 * float(found.square().sum()) else value


def _run(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    assert callable(node.target)
    return node.target(*args, **kwargs)
