"""Attention as the matrix products and the softmax that it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..arguments import argument
from ..base import Pass, PassResult

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class ExpandAttention(Pass):
    """Write attention out, for targets that run its parts on integers.

        %sdpa = scaled_dot_product_attention(%q, %k, %v)    %transpose = transpose(%k, -2, -1)
                                                            %matmul = matmul(%q, %transpose)
                                                            %mul = mul(%matmul, 0.125)
                                                            %softmax = softmax(%mul, -1)
                                                            %matmul_1 = matmul(%softmax, %v)

    Attention with a mask, dropout or shared key and value heads is left whole, and the notes say so: an integer softmax
    has no minus infinity to hide a position with.
    """

    def run(self, program: Program) -> PassResult:
        """Expand every attention that hides nothing."""
        nodes = program.graph.find_nodes(op="call_function", target=ATTENTION)
        plain = [node for node in nodes if _is_plain(node)]
        for node in plain:
            with program.graph.inserting_before(node):
                program.replace(node, _expanded(program, node))
        notes = [(len(plain), "expanded"), (len(nodes) - len(plain), "left whole: masked, or with shared heads")]
        return PassResult(program, bool(plain), tuple(f"{count} {what}" for count, what in notes if count))


def _is_plain(node: fx.Node) -> bool:
    unset = all(not argument(node, name) for name in ("dropout_p", "is_causal", "enable_gqa"))
    return unset and argument(node, "attn_mask") is None


def _expanded(program: Program, node: fx.Node) -> fx.Node:
    query, key, value = node.args[:3]
    scale = argument(node, "scale")
    scale = 1 / math.sqrt(query.meta[KEY].shape[-1]) if scale is None else scale  # type: ignore[union-attr]
    transposed = program.call(aten.transpose.int, (key, -2, -1), like=node)
    scores = program.call(aten.matmul.default, (query, transposed), like=node)
    scaled = program.call(aten.mul.Tensor, (scores, scale), like=node)
    weights = program.call(aten.softmax.int, (scaled, -1), like=node)
    return program.call(aten.matmul.default, (weights, value), like=node)
