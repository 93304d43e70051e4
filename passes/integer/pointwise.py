"""Chains of element-wise operators that start from one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.integer_operators import DEQUANTIZE
from tersor.ir.program import Program
from tersor.ir.shapes import KEY, describe

from ..quantization.elementwise import is_pointwise

aten = torch.ops.aten

_COPIES = (aten._to_copy.default, aten.to.dtype, aten.clone.default)
_LONGEST = 64


@dataclass(frozen=True)
class Pointwise:
    """Operators between `source` and `result` that take each element by itself. Called with elements, it computes them.

    source: the dequantized value that it starts from. nodes: the operators in graph order; the last gives the result.
    """

    program: Program
    source: fx.Node
    nodes: tuple[fx.Node, ...]

    @classmethod
    def behind(cls, program: Program, result: fx.Node) -> Pointwise | None:
        """The chain that `result` is computed by, back to the one dequantized value; None where there is none."""
        nodes: set[fx.Node] = set()
        sources: set[fx.Node] = set()
        stack = [result]
        while stack:
            node = stack.pop()
            if node in nodes or node in sources or _is_scalar(program, node):
                continue
            if node.target is DEQUANTIZE:
                sources.add(node)
            elif (is_pointwise(node) or node.target in _COPIES) and len(nodes) < _LONGEST:
                nodes.add(node)
                stack += node.all_input_nodes
            else:
                return None
        if len(sources) != 1:
            return None
        (source,) = sources
        alike = describe(program, source.meta[KEY]) == describe(program, result.meta[KEY])
        return cls(program, source, tuple(sorted(nodes))) if alike else None

    def __call__(self, elements: Tensor) -> Tensor:
        """The results for elements float32[n]."""
        values: dict[fx.Node, Any] = {self.source: elements}

        def read(node: fx.Node) -> Any:
            constant = self.program.constant(node)
            return values[node] if constant is None else constant.detach().reshape(())

        for node in self.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
        result: Tensor = values[self.nodes[-1]]
        return result.expand_as(elements)


def _is_scalar(program: Program, node: fx.Node) -> bool:
    constant = program.constant(node)
    return constant is not None and constant.numel() == 1
