"""Zeros that stay zero while everything around them is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tersor.ir.program import Program
from tersor.ir.sparsity import mask_of


def sparsity_masks(program: Program) -> dict[str, Tensor]:
    """For each parameter that is promised to be sparse, what to multiply it by: 0 where it stays zero, else 1."""
    tensors = {name: program.tensor(name).detach() for name in program.sparsity}
    return {name: mask_of(program.sparsity[name], tensor).to(tensor.dtype) for name, tensor in tensors.items()}


@torch.no_grad()
def apply_masks(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Multiply tensors by their masks, in place."""
    for name, mask in masks.items():
        tensors[name].mul_(mask)
