"""The oracle of pruning: the program as it was, with the indices that would go silenced wherever they are consumed.

What "silenced" means is written down here by operator, apart from the product: 0 where values are summed, minus
infinity where they compete, left out where statistics are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tersor.ir.program import Program
from tersor.passes.arguments import argument
from tersor.passes.pruning.analysis import Dimensions, dimensions
from tersor.passes.pruning.axes import Axis, Cutting
from tersor.passes.pruning.cut import cut

aten = torch.ops.aten
Keep = Mapping[Axis, Tensor]

SUMMED = {
    "linear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "scaled_dot_product_attention", "sum",
    "mean", "linalg_vector_norm", "norm", "cumsum", "rms_norm", "any", "count_nonzero",
}  # fmt: skip
COMPETING = {"softmax", "_softmax", "log_softmax", "_log_softmax", "amax", "max", "argmax", "topk", "logsumexp"}
LEAST = {"amin", "min", "argmin"}


class Silenced(fx.Interpreter):
    """Runs the whole program; operands lose what would go just before an operator that looks across indices."""

    def __init__(self, program: Program, found: Dimensions, keep: Keep) -> None:
        super().__init__(program.module)
        self.extra_traceback = False
        self.found = found
        self.cutting = Cutting(keep)

    def run_node(self, n: fx.Node) -> Any:
        name = getattr(n.target, "_opname", "")
        if n.op != "call_function" or not (name in SUMMED | COMPETING | LEAST or name in STATISTICS):
            return super().run_node(n)
        fill = -math.inf if name in COMPETING else math.inf if name in LEAST else 0.0
        args, _ = self.fetch_args_kwargs_from_env(n)
        if name in STATISTICS:
            (source, *_) = n.all_input_nodes
            return STATISTICS[name](n, self.mask(source, self.env[source]), args[0], args)
        filled = fx.node.map_arg((n.args, n.kwargs), lambda operand: self.fill(operand, fill))
        return n.target(*filled[0], **filled[1])  # type: ignore[operator]

    def mask(self, node: fx.Node, value: Tensor) -> Tensor:
        mask = torch.ones((), dtype=torch.bool)
        for dim, axis in enumerate(self.found.values[node]):
            if self.cutting.touches(axis):
                shape = [1] * value.dim()
                shape[dim] = -1
                mask = mask & self.cutting.mask(axis).reshape(shape)
        return mask.expand(value.shape)

    def fill(self, node: fx.Node, value: float) -> Any:
        given = self.env[node]
        if not isinstance(given, Tensor) or (not given.is_floating_point() and value != 0):
            return given
        mask = self.mask(node, given)
        return given if bool(mask.all()) else torch.where(mask, given, torch.full((), value).to(given.dtype))


def moments(x: Tensor, mask: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of what the mask keeps, over the dimensions, which are kept with size 1."""
    count = mask.sum(list(dims), keepdim=True)
    mean = torch.where(mask, x, torch.zeros((), dtype=x.dtype)).sum(list(dims), keepdim=True) / count
    variance = (
        torch.where(mask, x - mean, torch.zeros((), dtype=x.dtype)).square().sum(list(dims), keepdim=True) / count
    )
    return mean, variance


def layer_norm(node: fx.Node, mask: Tensor, x: Tensor, args: Sequence[Any]) -> Tensor:
    shape, weight, bias, eps = (*args[1:], *(None, None, 1e-5)[len(args) - 2 :])[:4]
    mean, variance = moments(x, mask, range(-len(shape), 0))
    y = (x - mean) / torch.sqrt(variance + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def group_norm(node: fx.Node, mask: Tensor, x: Tensor, args: Sequence[Any]) -> Tensor:
    groups, weight, bias, eps = (*args[1:], *(None, None, 1e-5)[len(args) - 2 :])[:4]
    split = (x.shape[0], groups, -1)
    mean, variance = moments(x.reshape(split), mask.reshape(split), [2])
    y = ((x.reshape(split) - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def instance_norm(node: fx.Node, mask: Tensor, x: Tensor, args: Sequence[Any]) -> Tensor:
    weight, bias, eps = args[1], args[2], args[7]
    mean, variance = moments(x, mask, range(2, x.dim()))
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = (x - mean) / torch.sqrt(variance + eps)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def deviation(root: bool) -> Callable[..., Tensor]:
    def rule(node: fx.Node, mask: Tensor, x: Tensor, args: Sequence[Any]) -> Tensor:
        dims = argument(node, "dim")
        given = argument(node, "unbiased" if node.target in (aten.var.dim, aten.std.dim) else "correction")
        count = mask.sum(dims, keepdim=True)
        _, variance = moments(x, mask, dims)
        found: Tensor = variance * count / (count - (1 if given is None else int(given)))
        found = found if argument(node, "keepdim") else found.squeeze(dims)
        return found.sqrt() if root else found

    return rule


STATISTICS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "var": deviation(False),
    "std": deviation(True),
}


def silenced(program: Program, found: Dimensions, keep: Keep, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the oracle gives, cut to what is kept of each output."""
    runner = Silenced(program, found, keep)
    with torch.no_grad():
        outputs = runner.run(*inputs, enable_io_processing=False)
    result = []
    for node, value in zip(program.outputs, outputs, strict=True):
        for dim, axis in enumerate(found.values[node]):
            if runner.cutting.touches(axis):
                value = value.index_select(dim, runner.cutting.mask(axis).nonzero().flatten())
        result.append(value)
    return tuple(result)


def choose(found: Dimensions, seed: int, share: float | None = None) -> dict[Axis, Tensor]:
    """A random choice of what stays, at least one of each axis and as many as operators need.

    share: of each axis, what goes; None leaves that to chance as well.
    """
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for leaf in found.prunable:
        part = float(torch.rand((), generator=generator)) if share is None else share
        count = max(1, leaf.size - round(leaf.size * part))
        mask = torch.zeros(leaf.size, dtype=torch.bool)
        mask[torch.randperm(leaf.size, generator=generator)[:count]] = True
        keep[leaf] = mask
    for axis, least, _ in found.minima:
        if Cutting(keep).size(axis) < least:
            for leaf in list(keep):
                if Cutting({leaf: keep[leaf]}).touches(axis):
                    del keep[leaf]
    return keep


def cut_copy(program: Program, keep: Keep, found: Dimensions) -> Program:
    """The program cut: the choice, made on the dimensions of one program, carried over to its copy."""
    copy = program.copy()
    again = dimensions(copy)
    places = {leaf: place for place, leaf in enumerate(found.prunable)}
    cut(copy, again, {again.prunable[places[leaf]]: mask for leaf, mask in keep.items()})
    copy.graph.eliminate_dead_code()
    copy.remove_unused_tensors()
    return copy.verify()


def check(
    program: Program, inputs: Sequence[Tensor], seed: int, share: float | None = None, rtol: float = 1e-4
) -> Program:
    """The equality, for one random choice. Returns the program that was cut."""
    found = dimensions(program)
    keep = choose(found, seed, share)
    expected = silenced(program, found, keep, inputs)
    pruned = cut_copy(program, keep, found)
    with torch.no_grad():
        outputs = pruned.run(inputs)
    for ours, oracle in zip(outputs, expected, strict=True):
        assert ours.shape == oracle.shape
        close(ours, oracle, rtol)
    return pruned


def close(found: Tensor, expected: Tensor, rtol: float) -> None:
    """Equal up to rounding, relative to the largest value."""
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(found), finite)
    scale = expected[finite].abs().max().item() if bool(finite.any()) else 1.0
    error = (found[finite].double() - expected[finite].double()).abs().max().item() if bool(finite.any()) else 0.0
    assert error <= rtol * max(scale, 1e-3), f"apart by {error:.3g}, where the largest value is {scale:.3g}"


__all__ = ["F", "check", "choose", "close", "cut_copy", "silenced"]
