"""Activations with zero point 0 on all of int8, as GPUs multiply them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program

from ..base import Pass, PassResult, Promise

QMIN, QMAX = -128, 127
_LEAST_STEPS = QMAX - QMIN - 1
"""A grid with fewer steps than a symmetric 8-bit one is a narrower type, and not to be widened unasked."""


@dataclass(frozen=True)
class SymmetrizeGrids(Pass):
    """Re-express 8-bit activation grids with zero point 0, for targets that have no other.

        fake_quantize(%relu, scale=0.01, zero_point=-128, -128, 127)     which holds 0 .. 2.55
        fake_quantize(%relu, scale=0.0201, zero_point=0, -128, 127)      which holds -2.57 .. 2.55

    The new grid holds every value that the old one did, at the price of coarser steps: up to twice as coarse where the
    old range lay on one side of zero. A grid of -127..127 gains the step -128 and keeps its scale. Grids of less than
    8 bits and of one scale a channel are left as they are, and so are weights that are symmetric already. A constant
    that an activation is multiplied with or added to is changed like one. Calibrating with `INT8_SYMMETRIC` from the
    start gives better scales, since the observer then chooses among symmetric ranges.
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE

    def run(self, program: Program) -> PassResult:
        """Replace scales and zero points, each once, whichever grids share them."""
        scales: dict[str, Tensor] = {}
        zeros: dict[str, Tensor] = {}
        nodes = [node for node in _grids_of_tensors(program) if _needs_change(program, node)]
        for node in nodes:
            scale, zero = (str(argument.target) for argument in node.args[1:3])  # type: ignore[union-attr]
            scales[scale] = torch.maximum(_symmetric_scale(program, node), scales.get(scale, torch.zeros(())))
            zeros[zero] = torch.zeros_like(program.tensor(zero))
        moved = sum(bool(program.tensor(name).any()) for name in zeros)
        program.set_tensors({**scales, **zeros})
        for node in nodes:
            node.args = (*node.args[:4], QMIN, QMAX)
        notes = [f"{len(nodes)} grids made symmetric, {moved} of which had a zero point"] if nodes else []
        return PassResult(program, bool(nodes), tuple(notes))


def _grids_of_tensors(program: Program) -> Iterator[fx.Node]:
    for node in program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        if node.args[3] is None:
            yield node


def _needs_change(program: Program, node: fx.Node) -> bool:
    low, high = int(node.args[4]), int(node.args[5])  # type: ignore[arg-type]
    if high - low < _LEAST_STEPS:
        return False
    zero = program.constant(node.args[2])
    if zero is not None and bool(zero.any()):
        return True
    return program.constant(node.args[0]) is None and (low, high) != (QMIN, QMAX)


def _symmetric_scale(program: Program, node: fx.Node) -> Tensor:
    """The least scale whose grid reaches as far as the old one on both sides, float32 of the old one's shape."""
    scale, zero = (program.tensor(str(argument.target)).detach() for argument in node.args[1:3])  # type: ignore[union-attr]
    low, high = (float(bound) - zero.double() for bound in node.args[4:6])  # type: ignore[arg-type]
    steps = torch.maximum(high / QMAX, low / QMIN)
    return (scale.double() * steps).to(scale.dtype)
