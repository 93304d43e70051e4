"""What criteria gather from data: gradients of the loss, and the variance of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.errors import CalibrationError
from tersor.ir.macs import RULES as MULTIPLIES
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..compare import node_values
from ..processes import rank, summed, world
from ..progress import track
from ..training.batches import split
from .axes import Axis, coordinates, frozen
from .groups import Group

Loss = Callable[..., Tensor]
"""`loss(outputs, *targets)`: the mean over the batch."""


def require_data(criterion: object, batches: Iterable[Any] | None, loss: object = True) -> Iterable[Any]:
    """The batches. Raises CalibrationError where a criterion lacks them, or its loss."""
    name = type(criterion).__name__
    if batches is None or loss is None:
        missing = "data" if batches is None else "a loss"
        raise CalibrationError(f"{name} needs {missing}", hint=f"{name}(batches{', loss' if loss is not True else ''})")
    return batches


def gradients(program: Program, batches: Iterable[Any], loss: Any) -> Iterator[dict[str, Tensor]]:
    """For each batch the gradient of the loss by parameter, float64, those that have one.

    Under torchrun each process has the same batches and gives the gradients of its part of them.

    Raises CalibrationError where there are no batches or the loss is not finite.
    """
    parameters = program.parameters()
    count = 0
    for batch in track(batches, "gradients"):
        count += 1
        if (count - 1) % world() != rank():
            continue
        parts = split(program, batch)
        with torch.enable_grad():
            outputs = program.unflatten(program.run(parts.inputs(program)))
            value = loss(outputs, *parts.targets, **parts.named_targets)
            if not bool(torch.isfinite(value)):
                raise CalibrationError(f"the loss of batch {count - 1} is not finite", found=value.item())
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        pairs: Iterable[tuple[str, Tensor | None]] = zip(parameters, found, strict=True)
        yield {name: grad.double() for name, grad in pairs if grad is not None}
    if not count:
        raise CalibrationError("the data is empty", expected="at least one batch", found="none")


def channel_variances(program: Program, groups: Sequence[Group], batches: Iterable[Any]) -> dict[Axis, Tensor]:
    """The variance of each group's indices over data and positions, where a weight or another value multiplies them."""
    axes = _consumed(program, groups)
    totals: dict[tuple[fx.Node, int], Tensor] = {}

    def visit(node: fx.Node, value: Any) -> None:
        for dim in axes.get(node, {}):
            rows = value.detach().double().movedim(dim, 0).flatten(1)
            count = rows.new_full((len(rows),), float(rows.shape[1]))
            new = torch.stack([count, rows.sum(1), rows.square().sum(1)]).cpu()
            totals[node, dim] = totals.get((node, dim), torch.zeros(())) + new

    seen = 0
    for batch in track(batches, "activations"):
        if seen % world() == rank():
            node_values(program, split(program, batch).inputs(program), visit)
        seen += 1
    if not seen:
        raise CalibrationError("the data is empty", expected="at least one batch", found="none")
    if world() > 1:
        for node, dims in axes.items():
            for dim in dims:
                own = totals.get((node, dim), torch.zeros(3, node.meta[KEY].shape[dim], dtype=torch.float64))
                totals[node, dim] = summed(own)
    return {group.leaf.find(): found for group in groups if (found := _variance(group, axes, totals)) is not None}


def _consumed(program: Program, groups: Sequence[Group]) -> dict[fx.Node, dict[int, Axis]]:
    """The computed values that a product reads, with those of their dimensions that can shrink."""
    values = groups[0].found.values if groups else {}
    return {
        value: {dim: axis for dim, axis in enumerate(values[value]) if not frozen(axis)}
        for node in program.graph.nodes
        if node.target in MULTIPLIES
        for value in node.all_input_nodes
        if value.op == "call_function" and isinstance(value.meta[KEY], Tensor)
    }


def _variance(group: Group, axes: Mapping[fx.Node, Mapping[int, Axis]], totals: Mapping[Any, Tensor]) -> Tensor | None:
    parts = []
    for node, dims in axes.items():
        for dim, axis in dims.items():
            for places in coordinates(axis, group.leaf):
                inside = places >= 0
                sums = torch.zeros(3, group.size, dtype=torch.float64)
                sums.index_add_(1, places[inside], totals[node, dim][:, inside])
                count, total, squares = sums
                parts.append((squares / count - (total / count).square()).clamp(min=0))
    return torch.stack(parts).mean(0) if parts else None
