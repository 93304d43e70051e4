"""SparseGPT's column sweep: choose a mask, take the error that it makes, spread it over the columns still to come."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tersor.ir.sparsity import NM, Block, Pattern, Unstructured

from .patterns import keep_mask


def optimal_update(
    matrix: Tensor, moments: Tensor, pattern: Pattern, block: int = 128, damping: float = 0.01
) -> Tensor:
    """A matrix with the pattern's zeros whose outputs are near the dense one's.

    matrix: [rows, columns]. moments: float64[columns, columns], the mean of x x^T. Columns are taken from the left; a
    column's weight that goes has its error divided among those to the right as the inverse Hessian says.
    """
    width = _width(pattern, block)
    weights = matrix.double().clone()
    dead = moments.diagonal() == 0
    hessian = moments.clone()
    hessian.diagonal().add_(damping * moments.diagonal().mean().clamp(min=1e-12))
    weights[:, dead] = 0
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    taken = 0
    for start in range(0, weights.shape[1], width):
        stop = min(start + width, weights.shape[1])
        part, pivots = weights[:, start:stop], factor.diagonal()[start:stop]
        mask = keep_mask(_due(pattern, weights[:, :stop], part, taken), (part / pivots).square())
        taken += _units(pattern, mask)
        errors = torch.zeros_like(part)
        for column in range(start, stop):
            place = column - start
            errors[:, place] = torch.where(mask[:, place], 0.0, part[:, place] / factor[column, column])
            part[:, place:] -= errors[:, place : place + 1] * factor[column, column:stop]
        part.mul_(mask)
        weights[:, stop:] -= errors @ factor[start:stop, stop:]
    return weights.to(matrix.dtype)


def _units(pattern: Pattern, values: Tensor) -> int:
    """How many values or blocks of a pattern are not zero."""
    if not isinstance(pattern, Block):
        return int(torch.count_nonzero(values))
    rows, columns = pattern.rows, pattern.columns
    padded = torch.nn.functional.pad(values != 0, (0, -values.shape[1] % columns, 0, -values.shape[0] % rows))
    return int(padded.reshape(len(padded) // rows, rows, -1, columns).any(3).any(1).sum())


def _due(pattern: Pattern, seen: Tensor, part: Tensor, taken: int) -> Pattern:
    """The pattern at the density that brings the columns seen so far to the whole's, so that fractions add up."""
    if not isinstance(pattern, Unstructured | Block):
        return pattern
    everywhere, here = (_units(pattern, torch.ones_like(values)) for values in (seen, part))
    due = int(pattern.density * everywhere + 1e-9) - taken
    return dataclasses.replace(pattern, density=max(due, 1e-6) / here)


def _width(pattern: Pattern, block: int) -> int:
    """How many columns choose together: whole groups of the pattern."""
    unit = pattern.m if isinstance(pattern, NM) else pattern.columns if isinstance(pattern, Block) else 1
    return max(unit, block // unit * unit)
