"""Dimensions that a file names apart although its operators need them to be equal.

Exporters name the batch of each input on its own, or not at all. Where an operator does not take its inputs because two
such names meet, the import starts again with the names of one axis made one, those that this operator sees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from tersor.ir.errors import VerificationError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.signature import TensorSpec

MOST_TRIES = 4
"""Imports of one file."""


class UnequalDimensionsError(VerificationError):
    """An operator does not take inputs in which several dynamic dimensions meet."""

    def __init__(self, error: VerificationError, dims: frozenset[str]) -> None:
        super().__init__(error.what, expected=error.expected, found=error.found, hint=error.hint)
        self.node = error.node
        self.dims = dims


def dims_of(program: Program, node: fx.Node) -> frozenset[str]:
    """The dynamic dimensions among the sizes of what a node reads."""
    found: set[str] = set()
    for source in node.all_input_nodes:
        value = source.meta.get(KEY)
        sizes = value.shape if isinstance(value, Tensor) else (value,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                found |= program.shapes.names(size)
    return frozenset(found)


def differing(error: BaseException | None) -> frozenset[str]:
    """The dimensions that met where an error came from; none where it has another cause."""
    while error is not None and not isinstance(error, UnequalDimensionsError):
        error = error.__cause__
    return frozenset() if error is None else error.dims


def merged(inputs: tuple[TensorSpec, ...], dims: frozenset[str], equal: Mapping[str, str]) -> Mapping[str, str] | None:
    """Names to take for others: of those that met, all that stand at the same axis of inputs. None where none do."""
    axes: dict[int, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and size in dims and size not in seen:
                seen.add(size)
                axes[axis].append(size)
    new = {name: names[0] for names in axes.values() for name in names[1:]}
    if not new:
        return None
    return {**{name: new.get(kept, kept) for name, kept in equal.items()}, **new}
