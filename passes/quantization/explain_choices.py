"""Say which algorithms a quantization uses on this graph, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tersor.ir.program import Program

from ..base import Pass, PassResult
from .finite import refuse_unfinite_weights
from .placement import operator_of
from .roles import Role, role_of


@dataclass(frozen=True)
class ExplainChoices(Pass):
    """Change nothing; note what kind of graph this is, and the choices with their reasons, for the report.

    choices: sentences, as `no equalization: weights have a scale a channel`.
    """

    choices: tuple[str, ...] = ()

    def run(self, program: Program) -> PassResult:
        """Count the layers that will be quantized. Raises CalibrationError where a weight is not finite."""
        refuse_unfinite_weights(program)
        counts = Counter(operator_of(node) for node in program.graph.nodes if role_of(program, node) is Role.COMPUTE)
        listed = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no layers with weights"
        convolutions = sum(count for name, count in counts.items() if name.startswith("conv"))
        linears = sum(counts.values()) - convolutions
        kind = "convolutional" if convolutions > linears else "a transformer or dense" if linears else "neither"
        return PassResult(program, False, (f"{kind}: {listed}", *self.choices))
