"""The integer program beside the fake-quantized one, value by value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import REPLACES, Program
from tersor.passes.compare import node_values


@dataclass(frozen=True)
class Apart:
    """How far a value on a grid is from the simulation's, in steps of the grid, given the same inputs."""

    node: str
    operator: str
    steps: int
    differing: int
    values: int


def stored_values(program: Program, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The last int8 values that stand for each node of the float program, by its name."""
    found: dict[str, Tensor] = {}

    def visit(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.dtype is torch.int8 and REPLACES in node.meta:
            found[str(node.meta[REPLACES])] = value

    node_values(program, inputs, visit)
    return found


def lockstep(simulated: Program, lowered: Program, inputs: Sequence[Tensor]) -> list[Apart]:
    """Run the simulation on what the integer program computed before each operator, and compare what comes next.

    So a difference of one operator does not add up through those after it.
    """
    held = stored_values(lowered, inputs)
    names = Counter(_original(node) for node in simulated.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE))
    walk = _Walk(simulated, {name: value for name, value in held.items() if names[name] == 1})
    walk.run(*inputs)
    return walk.found


class _Walk(fx.Interpreter):
    def __init__(self, program: Program, held: Mapping[str, Tensor]) -> None:
        super().__init__(program.module)
        self.program, self.held = program, held
        self.found: list[Apart] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target is not FAKE_QUANTIZE or _original(n) not in self.held:
            return value
        scale, zero_point = (self.program.constant(argument) for argument in n.args[1:3])
        assert scale is not None
        assert zero_point is not None
        theirs = self.held[_original(n)].to(torch.int32)
        ours = torch.round(value / scale).to(torch.int32) + zero_point
        steps = (ours - theirs).abs()
        differing = int((steps > 0).sum())
        self.found.append(Apart(n.name, _operator(n.args[0]), int(steps.max()), differing, steps.numel()))
        return (theirs - zero_point).to(torch.float32) * scale


def _original(node: fx.Node) -> str:
    return str(node.meta.get(REPLACES, node.name))


def _operator(node: Any) -> str:
    return str(getattr(node.target, "_opname", node.op))
