"""Pads that stand before a convolution as the convolution's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.integer_operators import INT_CONV
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, on_the_cpu

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldPads(Pass):
    """Let a convolution pad, where what stands before it pads evenly with the value that stands for 0.

        %p = constant_pad_nd(%x, [1, 1, 1, 1], zp)
        %a = int_conv(%p, ..., zp, padding [0, 0])    ->    %a = int_conv(%x, ..., zp, padding [1, 1])

    The window generator of a convolution pads without storing or waiting.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.INTEGER})

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Fold each pad into all of its readers, or leave it."""
        folded = 0
        for pad in program.graph.find_nodes(op="call_function", target=aten.constant_pad_nd.default):
            sides = _even_sides(pad)
            if sides is None or not all(_takes(user, pad) for user in pad.users):
                continue
            for user in list(pad.users):
                padding = [own + more for own, more in zip(user.args[5], sides, strict=True)]
                user.update_arg(0, pad.args[0])
                user.update_arg(5, padding)
            folded += 1
        program.graph.eliminate_dead_code()
        return PassResult(program, folded > 0, (f"pads folded: {folded}",))


def _even_sides(pad: fx.Node) -> list[int] | None:
    """The pad of each spatial dimension, the first one first; None where its two sides differ or it cuts."""
    rank = pad.meta[KEY].dim()
    given = list(pad.args[1])  # type: ignore[arg-type]  # its schema: a list of numbers, the last dimension first
    given += [0] * (2 * rank - len(given))
    pairs = [(given[2 * i], given[2 * i + 1]) for i in range(rank)]
    if any(before != after or not isinstance(before, int) or before < 0 for before, after in pairs):
        return None
    if any(pairs[rank - 2] + pairs[rank - 1]):
        return None
    return [before for before, _ in reversed(pairs[: rank - 2])]


def _takes(user: fx.Node, pad: fx.Node) -> bool:
    value = pad.args[2] if len(pad.args) > 2 else 0
    return user.target is INT_CONV and user.args[3] == value and user.args[1] is not pad
