"""Step sizes that are learned: Esser et al. 2019 (arXiv:1902.08153), LSQ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..quantization.observers import pair_safe_scales
from ..quantization.roles import Role, clamp_range, role_of
from .simulate_folding import evaluated

_LEAST = 2.0**-24
"""No step size gets smaller."""


@dataclass
class _Grid:
    """One step size: the nodes that use it, and what bounds it."""

    name: str
    nodes: list[fx.Node]
    most: float = math.inf


class StepSizes:
    """The scales of a fake-quantized program as parameters.

    Each gradient is multiplied by `1 / sqrt(n * q)`, where n is the number of values that share the step size in one
    sample, and q the greatest stored value over the zero point, so that step sizes and weights move alike. Zero points
    stay. A step size stays positive, and within the clamp before it, so that the clamp costs nothing in integers.

    pair_safe: raise 8-bit weight scales where two neighbouring weights sum to more than 128 (see `pair_safe_scales`).
    """

    def __init__(self, program: Program, pair_safe: bool) -> None:
        self.program, self.pair_safe = program, pair_safe
        self.grids = _grids(program)
        for grid in self.grids:
            parameter = nn.Parameter(program.tensor(grid.name).detach().clone())
            _put(program, grid.name, parameter)
            factor = gradient_scale(program, grid.nodes)
            parameter.register_hook(lambda gradient, factor=factor: gradient * factor)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The step sizes by name."""
        return {grid.name: self._parameter(grid) for grid in self.grids}

    def magnitudes(self) -> dict[str, float]:
        """The mean of each step size: what an optimizer that normalizes gradients has to be slowed by."""
        return {name: float(parameter.detach().mean()) for name, parameter in self.parameters().items()}

    @torch.no_grad()
    def constrain(self) -> None:
        """Put step sizes back within their bounds."""
        for grid in self.grids:
            scale = self._parameter(grid)
            scale.clamp_(_LEAST, grid.most)
            if self.pair_safe:
                self._make_pair_safe(grid, scale)

    def freeze(self) -> None:
        """Make them buffers again, as targets have them."""
        for grid in self.grids:
            _put(self.program, grid.name, self._parameter(grid).detach().clone())

    def _make_pair_safe(self, grid: _Grid, scale: Tensor) -> None:
        node = grid.nodes[0]
        if node.args[5] == 127 and _is_weight(self.program, node) and node.args[0].meta[KEY].dim() > 1:  # type: ignore[union-attr]  # a node
            axis: Any = node.args[3]
            weight = evaluated(self.program, node.args[0])
            scale.copy_(pair_safe_scales(weight.detach(), scale, axis))

    def _parameter(self, grid: _Grid) -> nn.Parameter:
        tensor = self.program.tensor(grid.name)
        assert isinstance(tensor, nn.Parameter)
        return tensor


def gradient_scale(program: Program, nodes: list[fx.Node]) -> float:
    """`1 / sqrt(n * q)`, of the first of the nodes that share a step size."""
    node = nodes[0]
    source, scale, zero_point, axis = node.args[:4]
    assert isinstance(source, fx.Node)
    assert isinstance(scale, fx.Node)
    sizes = source.meta[KEY].shape
    count = math.prod(sizes if _is_weight(program, node) else _of_one_sample(sizes))
    if axis is not None and program.tensor(str(scale.target)).dim():
        count //= program.tensor(str(scale.target)).numel()
    zero = program.constant(zero_point)
    assert zero is not None
    most = float(node.args[5]) - float(zero.float().min())  # type: ignore[arg-type]
    return 1 / math.sqrt(max(1, count) * max(1.0, most))


def _of_one_sample(sizes: Sequence[int | torch.SymInt]) -> list[int]:
    """All sizes but the batch's, which is the first that is dynamic, wherever it stands, else the first.

    A dynamic one counts as in the example: taken as a number it would stay that number ever after.
    """
    batch = next((at for at, size in enumerate(sizes) if not isinstance(size, int)), 0)
    others = [size for at, size in enumerate(sizes) if at != batch]
    return [size if isinstance(size, int) else int(size.node.hint) for size in others]


def _is_weight(program: Program, node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return not _reads_input(source)


def _reads_input(node: fx.Node) -> bool:
    """Whether a value depends on the inputs of the program; a weight does not, folded on the way or not."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current.op == "placeholder":
            return True
        fresh = [source for source in current.all_input_nodes if source not in seen]
        seen.update(fresh)
        stack += fresh
    return False


def _grids(program: Program) -> list[_Grid]:
    nodes: dict[str, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        nodes.setdefault(str(node.args[1].target), []).append(node)
    return [_Grid(name, users, min(_bound(program, user) for user in users)) for name, users in nodes.items()]


def _bound(program: Program, node: fx.Node) -> float:
    """The largest step size whose grid does not reach past a clamp before it."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or role_of(program, source) is not Role.CLAMP:
        return math.inf
    _, high = clamp_range(source)
    zero = program.constant(node.args[2])
    span = float(node.args[5]) - float(zero) if zero is not None else 0.0  # type: ignore[arg-type]
    return high / span if span > 0 and math.isfinite(high) else math.inf


def _put(program: Program, name: str, value: Tensor) -> None:
    """Let a name hold a tensor: a parameter where it is one, else a buffer."""
    path, _, leaf = name.rpartition(".")
    owner = program.module.get_submodule(path)
    delattr(owner, leaf)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)
