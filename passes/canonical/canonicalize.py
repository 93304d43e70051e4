"""One way to write each thing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx

from tersor.ir.program import Program

from ..base import Pass, PassResult, on_the_cpu
from . import cleanup, pieces, recover_operators, spellings
from .compute_weights import compute_weights
from .constant_folding import Constants
from .equal_calls import merge_equal_calls
from .rules import Context, Rules

aten = torch.ops.aten

_READS_STRIDES = frozenset({aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default})
_RULES = Rules.of(spellings.TABLE, pieces.TABLE, cleanup.TABLE, *recover_operators.TABLES)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Remove what does nothing, compute what is constant, and write the rest in one way.

        %pad = pad(%x, [1, 1, 1, 1])
        %conv2d = conv2d(%pad, @w)                  %conv2d = conv2d(%x, @w, None, [1, 1], [1, 1])
        %dropout = dropout(%conv2d, 0.5, False)     %add = add(%conv2d, @full)
        %full = full([1], 3.0)
        %add = add(%dropout, %full)

    Removed: dead nodes, copies, casts to the same dtype, views of everything, pads of nothing, adding 0 and
    multiplying by 1 where the type stays, dropout that does not train, detach, attention masks that hide nothing.
    Merged: reshapes of reshapes, permutations of permutations, zero pads into the padding of convolutions and of
    average pooling, equal calls. One spelling: an operator that has several is written in one of them (permute,
    matmul, split_with_sizes), and a formula as the operator that computes it: see `RecoverOperators`. What depends on
    buffers and constants alone is computed and becomes a buffer of the node's name; trainable parameters stay as they
    are, and so does what reads random numbers. A weight that a formula makes of parameters in every call (weight norm,
    spectral norm, weight standardization, low-rank updates) is computed, and is a parameter from then on.

    Once dropout is removed, `program.train()` cannot switch it on again, and without detach gradients flow where they
    did not.

    keep_training: leave dropout, detach and formulas of weights in, for a program that is trained afterwards.
    growth: how many bytes one folded constant may add; one that is larger than that and than what it was computed
        from is left to be computed.

    Linear in the number of nodes. What feeds as_strided is left alone, since that operator reads memory layout.
    """

    keep_training: bool = False
    growth: int = 1 << 20

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Visit every node once, in graph order."""
        counts: Counter[str] = Counter()
        counts["dead nodes removed"] = _remove_dead(program.graph)
        if not self.keep_training:
            counts["weights computed"] = compute_weights(program)
        constants = Constants(program, self.growth)
        context = Context(program, constants.values, self.keep_training)
        fixed = _layout_is_read(program.graph)
        _RULES.visit(context, constants, counts, "canonicalize", fixed)
        counts["equal calls merged"] = merge_equal_calls(program, constants.values.keys() | fixed)
        counts["constants folded"] = constants.store()
        _remove_dead(program.graph)
        notes = tuple(f"{label}: {count}" for label, count in sorted(counts.items()) if count)
        return PassResult(program, bool(notes), notes)


def _remove_dead(graph: fx.Graph) -> int:
    before = len(graph.nodes)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return before - len(graph.nodes)


def _layout_is_read(graph: fx.Graph) -> frozenset[fx.Node]:
    """Everything that an operator which reads strides is computed from."""
    stack = [node for node in graph.nodes if node.target in _READS_STRIDES]
    reached: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack.extend(node.all_input_nodes)
    return frozenset(reached)
