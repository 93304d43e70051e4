"""Values that a kernel keeps to itself, without a grid of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program

from ..base import Pass, PassResult, Promise
from .roles import WEIGHTS, Role, role_of

aten = torch.ops.aten

_READ_BYTES = frozenset(
    {
        *WEIGHTS,
        aten.add.Tensor,
        aten.mul.Tensor,
        aten.matmul.default,
        aten.bmm.default,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.mean.dim,
    }
)
"""Operators whose kernels on a GPU gain by reading bytes. All others compute in float, fused with their neighbours."""


@dataclass(frozen=True)
class FreeFusedValues(Pass):
    """Take away the grid of a value that only float operators read.

        %conv2d = conv2d(%x_quantized, ...)              %conv2d = conv2d(%x_quantized, ...)
        %c = fake_quantize(%conv2d, ...)                 %silu = silu(%conv2d)
        %silu = silu(%c)                                 %s = fake_quantize(%silu, ...)
        %s = fake_quantize(%silu, ...)

    On a processor without floating point, or with tables of 256 entries, such a grid is what makes the activation
    cheap. A GPU computes it in registers between the products and the store, where a grid costs a rounding and gains
    nothing, and can keep the two from being one kernel. The same holds for what softmax and normalizations read.
    What is an output of the program keeps its grid.
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE

    def run(self, program: Program) -> PassResult:
        """Look at every activation on a grid, the last first, so that its readers are as they will be."""
        grids = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
        freed = 0
        for node in reversed(list(grids)):
            source = node.args[0]
            if (
                program.constant(source) is None
                and isinstance(source, fx.Node)
                and not _is_read_as_bytes(program, node)
            ):
                program.replace(node, source)
                freed += 1
        return PassResult(program, bool(freed), (f"{freed} grids between fused operators taken away",) if freed else ())


def _is_read_as_bytes(program: Program, value: fx.Node) -> bool:
    """Whether a kernel that gains by bytes, or the caller, reads the value or what moves it."""
    return any(_reads_bytes(program, user) for user in value.users)


def _reads_bytes(program: Program, user: fx.Node) -> bool:
    role = role_of(program, user)
    if user.op == "output" or user.target is FAKE_QUANTIZE:
        return True
    if role in (Role.MOVE, Role.JOIN):
        return _is_read_as_bytes(program, user)
    if user.target is aten.mul.Tensor and _gates(program, user):
        return False
    return user.target in _READ_BYTES and role is not Role.FLOAT


def _gates(program: Program, product: fx.Node) -> bool:
    """Whether a product is of a value and a function of itself, as x * sigmoid(x), grids between left out."""
    factors = [_ungridded(factor) for factor in product.args[:2]]
    return any(
        isinstance(gate, fx.Node) and role_of(program, gate) is Role.LOOKUP and _ungridded(gate.args[0]) is value
        for gate, value in (factors, factors[::-1])
    )


def _ungridded(value: object) -> object:
    return value.args[0] if isinstance(value, fx.Node) and value.target is FAKE_QUANTIZE else value
