"""The weights that can be sparse, and what their operators read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tersor.ir.errors import CalibrationError
from tersor.ir.operators import FAKE_QUANTIZE, OBSERVE
from tersor.ir.program import Program

from ..arguments import argument, spatial
from ..compare import node_values
from ..progress import track
from ..training.batches import split

aten = torch.ops.aten
_DIMS = {aten.linear.default: 0, aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
"""Operators whose weight is [out, in, *kernel], by the number of kernel dimensions."""


@dataclass(frozen=True)
class Layer:
    """A weight, and every operator that multiplies by it."""

    name: str
    weight: Tensor
    nodes: tuple[fx.Node, ...]

    @property
    def groups(self) -> int:
        """The groups of a grouped convolution."""
        return 1 if self.nodes[0].target is aten.linear.default else int(argument(self.nodes[0], "groups"))

    def rows(self, node: fx.Node, x: Tensor) -> Tensor:
        """What the weight is multiplied with, [groups, rows, columns of the weight as a matrix]."""
        if node.target is aten.linear.default:
            return x.reshape(1, -1, x.shape[-1])
        return _patches(node, x, self.weight.shape)


def _patches(node: fx.Node, x: Tensor, shape: torch.Size) -> Tensor:
    """Patches of an image or signal as rows, with input channels innermost as in `as_matrix`."""
    dims = len(shape) - 2
    kernel, groups = shape[2:], int(argument(node, "groups"))
    stride, dilation = (spatial(node, name, dims) for name in ("stride", "dilation"))
    padding = spatial(node, "padding", dims)
    x = F.pad(x, [side for amount in reversed(padding) for side in (amount, amount)])
    for place, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        count = (x.shape[2 + place] - gap * (size - 1) - 1) // step + 1
        starts = torch.arange(count, device=x.device) * step
        positions = starts[:, None] + torch.arange(size, device=x.device) * gap
        x = x.index_select(2 + place, positions.flatten()).unflatten(2 + place, (count, size))
        x = x.movedim(3 + place, -1)
    batch, channels = x.shape[:2]
    x = x.reshape(batch, groups, channels // groups, *x.shape[2:])
    places = list(range(3, 3 + dims))
    kernels = list(range(3 + dims, 3 + 2 * dims))
    return x.permute(1, 0, *places, *kernels, 2).reshape(groups, -1, (channels // groups) * int(kernel.numel()))


def layers(program: Program) -> dict[str, Layer]:
    """The layers of a program by the name of their weight: parameters that such operators read, and nothing else."""
    found: dict[int, list[fx.Node]] = {}
    reads: dict[int, list[fx.Node]] = {}
    for read in program.graph.find_nodes(op="get_attr"):
        key = id(program.tensor(str(read.target)))
        for user in _through_grids(read):
            reads.setdefault(key, []).append(user)
            weight = argument(user, "weight") if user.target in _DIMS else None
            if weight is not None and _behind(weight) is read:
                found.setdefault(key, []).append(user)
    return {
        name: Layer(name, parameter.detach(), tuple(found[id(parameter)]))
        for name, parameter in program.parameters().items()
        if found.get(id(parameter)) == reads.get(id(parameter), []) and found.get(id(parameter))
    }


def _through_grids(read: fx.Node) -> list[fx.Node]:
    users = []
    for user in read.users:
        users += list(user.users) if user.target in (FAKE_QUANTIZE, OBSERVE) and user.args[0] is read else [user]
    return users


def _behind(value: Any) -> fx.Node:
    node: fx.Node = value.args[0] if value.target in (FAKE_QUANTIZE, OBSERVE) else value
    return node


def second_moments(
    program: Program, chosen: Mapping[str, Layer], batches: Iterable[Any], *, full: bool
) -> dict[str, Tensor]:
    """The mean of x x^T over all rows that a layer reads, float64[groups, columns, columns], or its diagonal.

    Raises CalibrationError where there are no batches, or an input is not finite.
    """
    wanted = {node: layer for layer in chosen.values() for node in layer.nodes}
    inputs = {node.args[0]: [user for user in node.args[0].users if user in wanted] for node in wanted}  # type: ignore[union-attr]
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def visit(node: fx.Node, value: Any) -> None:
        for user in inputs.get(node, ()):
            layer = wanted[user]
            rows = layer.rows(user, value.detach()).double()
            if not bool(torch.isfinite(rows).all()):
                raise CalibrationError("a value is not finite", node=node, found=f"in the input of {layer.name}")
            found = rows.transpose(1, 2) @ rows if full else rows.square().sum(1)
            sums[layer.name] = sums.get(layer.name, torch.zeros(())) + found
            counts[layer.name] = counts.get(layer.name, 0) + rows.shape[1]

    seen = 0
    for batch in track(batches, "second moments"):
        node_values(program, split(program, batch).inputs(program), visit)
        seen += 1
    if not seen:
        raise CalibrationError("the data is empty", expected="at least one batch", found="none")
    return {name: total / counts[name] for name, total in sums.items()}
