"""Activations with zero point 0 on all of int8, as GPUs multiply them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program

from ..base import Pass, PassResult, Promise, on_the_cpu
from .roles import Role, clamp_range, operands, role_of

aten = torch.ops.aten

QMIN, QMAX = -128, 127
_AVERAGES = frozenset(
    {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim}
)
_NONNEGATIVE = frozenset(
    {aten.sigmoid.default, aten.softmax.int, aten.hardsigmoid.default, aten.exp.default, aten.abs.default}
)
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

    A grid that began at zero cut off what is below. Where anything below may come in, a relu does that from then on.
    """

    promise: ClassVar[Promise] = Promise.APPROXIMATE

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Replace scales and zero points, each once, whichever grids share them."""
        scales: dict[str, Tensor] = {}
        zeros: dict[str, Tensor] = {}
        nodes = [node for node in _grids_of_tensors(program) if _needs_change(program, node)]
        for node in nodes:
            scale, zero = (str(argument.target) for argument in node.args[1:3])  # type: ignore[union-attr]
            scales[scale] = torch.maximum(_symmetric_scale(program, node), scales.get(scale, torch.zeros(())))
            zeros[zero] = torch.zeros_like(program.tensor(zero))
        clamped = _keep_clamps(program, nodes)
        moved = sum(bool(program.tensor(name).any()) for name in zeros)
        program.set_tensors({**scales, **zeros})
        for node in nodes:
            node.args = (*node.args[:4], QMIN, QMAX)
        notes = [f"{len(nodes)} grids made symmetric, {moved} of which had a zero point"] if nodes else []
        notes += [f"{clamped} of them cut off what is below zero: relu does that now"] if clamped else []
        return PassResult(program, bool(nodes), tuple(notes))


def _keep_clamps(program: Program, nodes: Sequence[fx.Node]) -> int:
    """Put a relu before each grid that begins at zero where something below may come in; how many it took.

    Files quantized elsewhere leave relu to the grid, which clamps as well. A grid with steps below zero does not.
    """
    one_sided = [node for node in nodes if _begins_at_zero(program, node) and program.constant(node.args[0]) is None]
    needed = [node for node in one_sided if not _is_nonnegative(program, node.args[0])]
    for node in needed:
        with program.graph.inserting_before(node):
            node.update_arg(0, program.call(aten.relu.default, (node.args[0],), like=node))
    return len(needed)


def _begins_at_zero(program: Program, node: fx.Node) -> bool:
    zero = program.constant(node.args[2])
    low = int(node.args[4])  # type: ignore[arg-type]  # the verifier holds that a grid's bounds are numbers
    return zero is not None and bool(torch.eq(zero, low).all())


def _is_nonnegative(program: Program, value: object) -> bool:
    """Whether a value cannot be below zero, as far as can be seen."""
    if not isinstance(value, fx.Node) or value.op != "call_function":
        return False
    if value.target is FAKE_QUANTIZE:
        return _begins_at_zero(program, value)
    role = role_of(program, value)
    if role is Role.CLAMP:
        return clamp_range(value)[0] >= 0 or _is_nonnegative(program, value.args[0])
    if role in (Role.MOVE, Role.JOIN) or value.target in _AVERAGES:
        return all(_is_nonnegative(program, source) for source in operands(program, value))
    return value.target in _NONNEGATIVE


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
