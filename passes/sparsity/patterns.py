"""From scores to masks: which weights a pattern keeps.

Weights are seen as a matrix [out, kernel positions * in]: the reduction runs over input channels for each kernel
position, as kernels lay it out. `as_matrix` and `as_weight` go there and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tersor.ir.errors import PassError
from tersor.ir.sparsity import NM, Block, Pattern, Unstructured


def as_matrix(weight: Tensor) -> Tensor:
    """[out, in, *kernel] as [out, prod(kernel) * in]."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def as_weight(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrix`."""
    out, inputs, *kernel = shape
    return matrix.reshape(out, *kernel, inputs).movedim(-1, 1).contiguous()


def unstructured(pattern: Unstructured, scores: Tensor) -> Tensor:
    """The highest scores, anywhere."""
    return _highest(scores, pattern.density)


def n_of_m(pattern: NM, scores: Tensor) -> Tensor:
    """The n highest of every m in a row."""
    grouped = scores.reshape(scores.shape[0], -1, pattern.m)
    chosen = grouped.topk(pattern.n, dim=-1).indices
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, chosen, True).reshape(scores.shape)


def blocks(pattern: Block, scores: Tensor) -> Tensor:
    """The blocks with the highest sums; those at the rim may be smaller."""
    rows, columns = pattern.rows, pattern.columns
    padded = torch.nn.functional.pad(scores, (0, -scores.shape[1] % columns, 0, -scores.shape[0] % rows))
    sums = padded.reshape(padded.shape[0] // rows, rows, -1, columns).sum((1, 3))
    kept = _highest(sums, pattern.density).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return kept[: scores.shape[0], : scores.shape[1]]


def _highest(scores: Tensor, density: float) -> Tensor:
    count = int(density * scores.numel() + 1e-9)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(count).indices] = True
    return mask.reshape(scores.shape)


_MASKS: dict[type[Any], Callable[[Any, Tensor], Tensor]] = {Unstructured: unstructured, NM: n_of_m, Block: blocks}


def keep_mask(pattern: Pattern, scores: Tensor) -> Tensor:
    """Which entries of a matrix the pattern keeps, bool[rows, columns], by the highest scores.

    Raises PassError for a pattern that has no rule.
    """
    rule = _MASKS.get(type(pattern))
    if rule is None:
        raise PassError(
            f"{pattern} cannot be made by zeros alone", expected=", ".join(kind.__name__ for kind in _MASKS)
        )
    return rule(pattern, scores)


def misfit(pattern: Pattern, weight: Tensor) -> str | None:
    """Why a weight cannot have the pattern; None where it can."""
    if weight.dim() < 2:
        return "a vector has no reduction"
    if isinstance(pattern, NM) and weight.shape[1] % pattern.m:
        return f"{weight.shape[1]} inputs are not a multiple of {pattern.m}"
    if isinstance(pattern, Block) and (weight.shape[0] < pattern.rows or as_matrix(weight).shape[1] < pattern.columns):
        return f"{tuple(weight.shape)} is smaller than a block"
    return None


def density_of(pattern: Pattern) -> float:
    """The share of weights that the pattern keeps."""
    return pattern.n / pattern.m if isinstance(pattern, NM) else float(getattr(pattern, "density", 1.0))


def with_density(pattern: Pattern, density: float) -> Pattern:
    """The pattern at another density. N:M has the one that its numbers say."""
    if isinstance(pattern, Unstructured | Block):
        return dataclasses.replace(pattern, density=min(1.0, density))
    return pattern
