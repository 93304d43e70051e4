"""The range of an activation by the error of the layers that read it, not by the error of its own values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.operators import OBSERVE, quantize_to_grid
from tersor.ir.program import Program
from tersor.ir.quantization import QuantType

from .observers import Range, grid
from .roles import WEIGHTS, Role, operands, role_of
from .samples import Rows

aten = torch.ops.aten

_LIMITS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03)
"""Where a range is cut off, as a share of the largest magnitude."""
_ROWS = 256
_ITEMS = 8
"""With two, of images that differ in contrast, ranges were cut that the others need: 10 dB on ResNet-50."""
_WORTH = 0.97
"""Clipping has to gain 3 % on the sample, since what it does to values beyond the sample is not seen."""


@dataclass
class Readers:
    """The layers that read an activation from its grid, and a sample of what they read.

    Rows of linears are sampled evenly; of convolutions whole items are kept, as they need neighbours: those with the
    largest values, since clipping that the sample does not show is clipping that is not judged.
    """

    nodes: tuple[fx.Node, ...]
    weights: tuple[tuple[Tensor, Tensor | None], ...]
    rows: Rows = field(default_factory=lambda: Rows(_ROWS))
    items: list[Tensor] = field(default_factory=list)

    @property
    def linear(self) -> bool:
        return all(node.target is aten.linear.default for node in self.nodes)

    def add(self, value: Tensor) -> None:
        """Take in one batch of the activation."""
        if self.linear:
            self.rows.add(value.reshape(-1, value.shape[-1]))
            return
        largest = value.detach().float().abs().flatten(1).amax(1).argmax()
        self.items.append(value[largest : largest + 1].detach().float().clone())
        self.items = sorted(self.items, key=lambda item: -float(item.abs().max()))[:_ITEMS]

    def choose(self, span: Range, kind: QuantType) -> Range:
        """The range within `span` with the least error of all readers' outputs, each relative to its size."""
        samples = [self.rows.sample()] if self.linear else self.items
        largest = max(-span.low, span.high)
        candidates = [Range(max(span.low, -largest * share), min(span.high, largest * share)) for share in _LIMITS]
        candidates = list(dict.fromkeys(candidates))
        errors = [0.0] * len(candidates)
        for value in samples:
            for node, (weight, bias) in zip(self.nodes, self.weights, strict=True):
                exact = _run(node, value, weight, bias)
                power = float(exact.square().sum()) or 1.0
                for index, candidate in enumerate(candidates):
                    found = _run(node, quantized_within(value, candidate, kind), weight, bias)
                    errors[index] += float((found - exact).square().sum()) / power
        best = errors.index(min(errors))
        return candidates[best] if errors[best] < _WORTH * errors[0] else candidates[0]


def readers_of(program: Program, observer: fx.Node, convolutions: bool = True) -> Readers | None:
    """The layers that read an observed activation, if such layers are all that reads it."""
    nodes: list[fx.Node] = []
    weights: list[tuple[Tensor, Tensor | None]] = []
    for user in observer.users:
        if role_of(program, user) is not Role.COMPUTE or operands(program, user) != [observer]:
            return None
        if user.target is not aten.linear.default and not convolutions:
            return None
        layout = WEIGHTS[user.target]
        weight = _tensor(program, user.args[layout.weight])
        if weight is None:
            return None
        bias = user.args[layout.bias] if len(user.args) > layout.bias else None
        nodes.append(user)
        weights.append((weight.detach().float(), _tensor(program, bias)))
    mixed = len({node.target is aten.linear.default for node in nodes}) > 1
    return Readers(tuple(nodes), tuple(weights)) if nodes and not mixed else None


def _tensor(program: Program, argument: Any) -> Tensor | None:
    if isinstance(argument, fx.Node) and argument.target is OBSERVE:
        argument = argument.args[0]
    return program.constant(argument)


def _run(node: fx.Node, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    layout = WEIGHTS[node.target]
    rest: Sequence[Any] = node.args[layout.bias + 1 :]
    with torch.no_grad():
        result: Tensor = node.target(value, weight, None, *rest)  # type: ignore[operator]  # an operator
    return result


def quantized_within(value: Tensor, span: Range, kind: QuantType) -> Tensor:
    """Values rounded to the grid over a range, per tensor."""
    scale, zero = grid(span, kind)
    steps = quantize_to_grid(value, torch.tensor(scale), torch.tensor(zero), None, kind.qmin, kind.qmax)
    return steps.sub_(zero).mul_(scale)
