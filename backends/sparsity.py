"""What a target does with the sparsity that a program promises: a note a pattern, so that no zero is lost silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tersor.ir.program import Program
from tersor.ir.sparsity import NM, Block, Channel, Pattern, Unstructured

Treatment = Callable[[Pattern], str | None]
"""What a target does with the zeros of a pattern, in words; None where the target says that in its own way."""


def sparsity_notes(program: Program, treatment: Treatment) -> tuple[str, ...]:
    """How many weights have each kind of pattern, and what becomes of their zeros; empty where the table is."""
    counts = Counter((kind(pattern), treatment(pattern)) for pattern in program.sparsity.values())
    return tuple(f"{count} weights {name}: {said}" for (name, said), count in counts.items() if said is not None)


def kind(pattern: Pattern) -> str:
    """A pattern without its density, as people write it."""
    match pattern:
        case NM(n, m):
            return f"{n}:{m} sparse"
        case Block(rows, columns):
            return f"sparse in blocks of {rows}x{columns}"
        case Channel():
            return "with channels of zeros"
        case Unstructured():
            return "sparse without structure"
    return f"sparse ({pattern.name})"
