"""Zeros that stay zero while everything around them is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tersor.ir.program import Program
from tersor.ir.sparsity import Channel


def sparsity_masks(program: Program) -> dict[str, Tensor]:
    """For each parameter that is promised to be sparse, what to multiply it by: 0 where it is zero, else 1.

    Where whole channels are promised, only those are held; single zeros elsewhere may move.
    """
    masks = {}
    for name, pattern in program.sparsity.items():
        tensor = program.tensor(name).detach()
        if isinstance(pattern, Channel):
            mask = torch.ones_like(tensor)
            mask[list(pattern.indices)] = 0
        else:
            mask = (tensor != 0).to(tensor.dtype)
        masks[name] = mask
    return masks


@torch.no_grad()
def apply_masks(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Multiply tensors by their masks, in place."""
    for name, mask in masks.items():
        tensors[name].mul_(mask)
