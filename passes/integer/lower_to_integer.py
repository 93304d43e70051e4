"""From fake-quantize to integer operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, on_the_cpu
from ..quantization.placement import operator_of
from .float_islands import float_islands
from .lowering import Lowering
from .rules import RULES


@dataclass(frozen=True)
class LowerToInteger(Pass):
    """Compute on integers what is between fake-quantizes, by operators whose arithmetic is the same on every target.

        %x_quantized = fake_quantize(%x, ...)         %quantize = quantize(%x, ...)
        %w_quantized = fake_quantize(@w, ...)         %int_conv = int_conv(%quantize, @w, @b, ...)
        %conv2d = conv2d(%x_quantized,            ->  %requantize = requantize(%int_conv, @m, ...)
                         %w_quantized, %b)            %dequantize = dequantize(%requantize, ...)
        %relu = relu(%conv2d)
        %relu_quantized = fake_quantize(%relu, ...)

    Clamps are fused into requantization. A chain of element-wise operators from one grid to another is a table. What
    has no integer form stays float between dequantize and quantize, and is reported with a reason (`float_islands`).
    The arithmetic follows Jacob et al. 2018 (arXiv:1712.05877), with multipliers in float32; see docs/arithmetic.md.

    Raises PassError, naming the node, where an accumulator could overflow int32, and where observers were not
    calibrated.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    gives: ClassVar[Stage | None] = Stage.INTEGER
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Lower node by node, in graph order."""
        lowering = Lowering(program, RULES)
        for node in list(program.graph.nodes):
            lowering.visit(node)
        program.graph.eliminate_dead_code()
        lowering.rename_weights()
        return PassResult(program, True, _notes(program))


def _notes(program: Program) -> tuple[str, ...]:
    integers = Counter(
        operator_of(node)
        for node in program.graph.nodes
        if node.op == "call_function" and str(node.target).startswith("tersor.int_")
    )
    islands = Counter(operator_of(island.node) for island in float_islands(program))
    notes = [", ".join(f"{count} {name}" for name, count in integers.items()) or "nothing is integer"]
    if islands:
        notes.append("float: " + ", ".join(f"{count} {name}" for name, count in islands.items()))
    return tuple(notes)
