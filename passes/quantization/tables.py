"""Values that are rows of a table: what they may be is known without data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from tersor.ir.program import Program

_AT_ONCE = 1 << 22
"""Values that are looked at together: a table of a language model takes more memory than the batches do."""


def table_of(program: Program, node: object) -> Tensor | None:
    """The table whose rows a node takes, float[rows, width]; None where it does something else.

    Rows that are chosen by a constant are no such values: others never occur.
    """
    if not isinstance(node, fx.Node) or node.target is not torch.ops.aten.embedding.default:
        return None
    return program.constant(node.args[0]) if program.constant(node.args[1]) is None else None


def parts_of(table: Tensor) -> Iterator[Tensor]:
    """A table in parts of some rows."""
    yield from table.detach().split(max(1, _AT_ONCE // max(1, table[0].numel())))
