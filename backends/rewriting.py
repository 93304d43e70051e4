"""What is written otherwise because a target knows nothing of an operator: exactly, and noted in the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tersor.ir.errors import PassError
from tersor.ir.program import HistoryEntry, Program
from tersor.passes.canonical.compute_weights import compute_weights
from tersor.passes.rewriting.decompose import Decompose

from .base import Unsupported

_DEPTH = 6
"""Definitions within definitions."""

Ask = Callable[[Program], Sequence[Unsupported]]


def without_unknown(program: Program, ask: Ask) -> Program:
    """The program without operators that the target knows nothing of, as far as there are exact ways around them.

    ask: every node that the target refuses. What depends on constants and parameters alone is computed; an operator
    that torch defines by others, all of which the target takes, is written as those. Operators that the target knows
    and refuses as they are called, batch norm that trains for one, stay: another form would hide the reason.
    """
    refused = ask(program)
    if any(found.unknown for found in refused):
        program = _computed(program, refused)
        refused = ask(program)
    for name in sorted({found.operator for found in refused if found.unknown}):
        program = _decomposed(program, name, ask)
    return program


def _computed(program: Program, refused: Sequence[Unsupported]) -> Program:
    """With those values computed in whose formulas an unknown operator stands."""
    copy = program.copy()
    names = {found.node for found in refused if found.unknown}
    needed = frozenset(node for node in copy.graph.nodes if node.name in names)
    count = compute_weights(copy, needed)
    if not count:
        return program
    return copy.recorded(HistoryEntry("compute_weights", {}, (f"weights computed: {count}",))).verify()


def _decomposed(program: Program, name: str, ask: Ask) -> Program:
    """With the operator as what torch defines it by, where the target takes that; else the program given."""
    before = {found.operator for found in ask(program)}
    names = [name]
    for _ in range(_DEPTH):
        try:
            found = Decompose(tuple(names))(program)
        except PassError:
            return program
        left = ask(found)
        new = {each.operator for each in left} - before
        if not new:
            return program if name in {each.operator for each in left} else found
        if not all(each.unknown for each in left if each.operator in new):
            return program
        names += sorted(new)
    return program
