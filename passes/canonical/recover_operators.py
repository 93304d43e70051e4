"""Formulas back to the operators that compute them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tersor.ir.program import Program

from ..base import Pass, PassResult, on_the_cpu
from . import recover_attention, recover_group_norm, recover_rules
from .constant_folding import Constants
from .rules import Context, Rules

TABLES = (recover_rules.TABLE, recover_attention.TABLE, recover_group_norm.TABLE)
_RULES = Rules.of(*TABLES)
_LARGEST = 1 << 20
"""Constants of more bytes than this, and than what they are made of, are not looked at."""


@dataclass(frozen=True)
class RecoverOperators(Pass):
    """Write a formula that a model or an exporter spelled out as the operator that it computes.

        %pow = pow(%x, 2)
        %mean = mean(%pow, [-1], True)
        %add = add(%mean, 1e-06)                    %rms_norm = rms_norm(%x, [64], @weight, 1e-06)
        %rsqrt = rsqrt(%add)
        %mul = mul(%x, %rsqrt)
        %mul_1 = mul(@weight, %mul)

    Found: silu, mish, hardsigmoid, hardswish, both forms of gelu, rsqrt, layer norm, RMS norm and group norm with
    what they are scaled and shifted by, attention, products with a matrix of parameters, the bias of a linear. So
    passes and targets, which know the operators, see the same graph whichever way the model came in. A formula is
    left as it is where something else uses a value inside of it, where its constants are others, and where its parts
    differ in dtype.

    `Canonicalize` does this as well, and finds more, since it clears away what stands in between.

    Linear in the number of nodes.
    """

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Visit every node once, in graph order."""
        counts: Counter[str] = Counter()
        constants = Constants(program, _LARGEST)
        _RULES.visit(Context(program, constants.values), constants, counts, "recover operators")
        notes = tuple(f"{label}: {count}" for label, count in sorted(counts.items()))
        return PassResult(program, bool(notes), notes)
