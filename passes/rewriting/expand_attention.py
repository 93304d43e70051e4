"""Attention as the matrix products and the softmax that it is made of."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..arguments import argument
from ..base import Pass, PassResult, on_the_cpu

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
_HIDING = -1e30
"""What is added to a score and is less hides it."""


@dataclass(frozen=True)
class ExpandAttention(Pass):
    """Write attention out, for targets that run its parts on integers.

        %sdpa = scaled_dot_product_attention(    ->   %transpose = transpose(%k, -2, -1)
            %q, %k, %v, %mask)                        %matmul = matmul(%q, %transpose)
                                                      %mul = mul(%matmul, 0.125)
                                                      %hidden = logical_not(%mask)
                                                      %masked = masked_fill(%mul, %hidden, -inf)
                                                      %softmax = _safe_softmax(%masked, -1)
                                                      %matmul_1 = matmul(%softmax, %v)

    A mask that shows and hides is written as `masked_fill`, which an integer softmax takes in. Attention with dropout,
    with a mask of other numbers, or causal over a dynamic length is left whole, and the notes say so.
    """

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Expand every attention that only shows and hides."""
        nodes = program.graph.find_nodes(op="call_function", target=ATTENTION)
        expansion, left = _Expansion(program), Counter[str]()
        for node in nodes:
            reason = _reason(program, node)
            if reason is not None:
                left[reason] += 1
                continue
            with program.graph.inserting_before(node):
                program.replace(node, expansion.of(node))
        done = len(nodes) - left.total()
        notes = [f"{done} expanded"] if done else []
        return PassResult(program, done > 0, (*notes, *(f"{count} left whole: {why}" for why, count in left.items())))


def _reason(program: Program, node: fx.Node) -> str | None:
    """Why attention is left as it is."""
    if argument(node, "dropout_p"):
        return "it drops out"
    if argument(node, "is_causal"):
        return None if all(type(size) is int for size in _lengths(node)) else "causal over a dynamic length"
    mask = argument(node, "attn_mask")
    if mask is None or mask.meta[KEY].dtype is torch.bool:
        return None
    added = program.constant(mask)
    if added is None or not bool(((added == 0) | (added < _HIDING)).all()):
        return "its mask is of numbers that are added"
    return None


def _lengths(node: fx.Node) -> tuple[Any, Any]:
    """How many positions query and key have."""
    query, key = (value.meta[KEY].shape[-2] for value in node.args[:2])  # type: ignore[union-attr]  # tensors
    return query, key


@dataclass
class _Expansion:
    """Writes attention out; masks that several share are inverted once."""

    program: Program
    hidden: dict[object, tuple[fx.Node, bool]] = field(default_factory=dict)

    def of(self, node: fx.Node) -> fx.Node:
        """What stands for one attention."""
        query, key, value = node.args[:3]
        if argument(node, "enable_gqa"):
            key, value = (self._repeated(heads, query, node) for heads in (key, value))
        scale = argument(node, "scale")
        scale = 1 / math.sqrt(query.meta[KEY].shape[-1]) if scale is None else scale  # type: ignore[union-attr]
        transposed = self._call(node, aten.transpose.int, key, -2, -1)
        scores = self._call(node, aten.mul.Tensor, self._call(node, aten.matmul.default, query, transposed), scale)
        return self._call(node, aten.matmul.default, self._weights(node, scores), value)

    def _call(self, node: fx.Node, target: Any, *args: Any) -> fx.Node:
        return self.program.call(target, args, like=node)

    def _repeated(self, heads: Any, query: Any, node: fx.Node) -> fx.Node:
        """Each head of key or value serves as many consecutive heads of the query."""
        times = query.meta[KEY].shape[-3] // heads.meta[KEY].shape[-3]
        return self._call(node, aten.repeat_interleave.self_int, heads, int(times), -3)

    def _weights(self, node: fx.Node, scores: fx.Node) -> fx.Node:
        mask = argument(node, "attn_mask")
        if mask is None and not argument(node, "is_causal"):
            return self._call(node, aten.softmax.int, scores, -1)
        key = _lengths(node) if mask is None else mask.target if mask.op == "get_attr" else mask
        if key not in self.hidden:
            self.hidden[key] = self._inverted(node, mask)
        hidden, shows_each_row = self.hidden[key]
        masked = self._call(node, aten.masked_fill.Scalar, scores, hidden, -math.inf)
        # Where a row hides everything, attention gives zeros, and a plain softmax NaN.
        softmax = aten.softmax.int if shows_each_row else aten._safe_softmax.default
        return self._call(node, softmax, masked, -1)

    def _inverted(self, node: fx.Node, mask: fx.Node | None) -> tuple[fx.Node, bool]:
        """True where a position is hidden, and whether each row is known to show something."""
        if mask is None:
            later = torch.ones(_lengths(node), dtype=torch.bool).triu(1)
            return self._constant(node, later)
        given = self.program.constant(mask)
        if given is None:
            return self._call(node, aten.logical_not.default, mask), False
        return self._constant(node, ~given if given.dtype is torch.bool else given != 0)

    def _constant(self, node: fx.Node, hidden: Tensor) -> tuple[fx.Node, bool]:
        name = self.program.add_tensor(f"{node.name}_hidden", hidden)
        return self.program.attribute(name), not bool(hidden.all(-1).any())
