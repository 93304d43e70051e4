"""Operators that reduce dimensions, normalize along them, or pool over space.

What is silenced counts as 0 in a sum and in a mean, which keeps its divisor; it is left out of softmax, maximum and the
statistics of layer and group norm; RMS norm, a mean of squares, keeps its divisor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ...arguments import argument, set_argument
from ..axes import Axis, product
from ..flow import Action, Axes, Flow, Rule

aten = torch.ops.aten
Size = Callable[[Axis], int]

# -- reductions ------------------------------------------------------------------------------------------------------


def _reduced_dims(node: fx.Node, rank: int) -> set[int]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]  # an operator
    dims = argument(node, "dim") if "dim" in names else None
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % max(rank, 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def _remaining(flow: Flow, node: fx.Node, axes: Axes, dims: set[int]) -> Axes:
    kept = any(argument.name == "keepdim" for argument in node.target._schema.arguments) and argument(node, "keepdim")  # type: ignore[union-attr]
    if kept:
        return tuple(flow.fresh(1, dim) if dim in dims else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in dims)


def reduce(flow: Flow, node: fx.Node) -> Any:
    """Sums, extremes, norms: the dimensions reduced go. Two results (values and their places) have the same axes."""
    axes = flow.of(node.args[0])
    dims = _reduced_dims(node, len(axes))
    result = _remaining(flow, node, axes, dims)
    return result if isinstance(node.meta[KEY], torch.Tensor) else (result,) * len(node.meta[KEY])


def deviation(flow: Flow, node: fx.Node) -> Axes:
    """var, std: statistics are of what is left, which has to be two values where they are divided by one less."""
    axes = flow.of(node.args[0])
    for dim in _reduced_dims(node, len(axes)):
        flow.at_least(axes[dim], min(2, axes[dim].size), node)
    return _remaining(flow, node, axes, _reduced_dims(node, len(axes)))


def mean(flow: Flow, node: fx.Node) -> Axes:
    """A mean over channels keeps its divisor: it becomes a sum over as many as there were."""
    axes = flow.of(node.args[0])
    dims = _reduced_dims(node, len(axes))
    over = [axes[dim] for dim in sorted(dims)]
    flow.change(node, over, _sum_over(math.prod(axis.size for axis in over), sorted(dims)))
    return _remaining(flow, node, axes, dims)


def _sum_over(count: int, dims: list[int]) -> Action:
    def action(program: Program, node: fx.Node, size: Size) -> None:
        kept = bool(argument(node, "keepdim")) if node.target is aten.mean.dim else False
        with program.graph.inserting_before(node):
            total = program.graph.call_function(aten.sum.dim_IntList, (node.args[0], dims, kept), dict(node.kwargs))
        total.meta = {**node.meta}
        node.target, node.args, node.kwargs = aten.mul.Tensor, (total, 1 / count), {}

    return action


def whole(flow: Flow, node: fx.Node) -> Axes:
    """Reductions in which a value that is left out changes the rest: the dimensions stay."""
    axes = flow.of(node.args[0])
    dims = _reduced_dims(node, len(axes))
    flow.pin([axes[dim] for dim in dims], "every value counts")
    return _remaining(flow, node, axes, dims)


def along(flow: Flow, node: fx.Node) -> Axes:
    """softmax: the shape stays, and what is left out takes no part."""
    return flow.of(node.args[0])


def along_whole(flow: Flow, node: fx.Node) -> Any:
    """cumsum, sort, diff and the like: the order or every value counts; the result has a dimension of its own."""
    axes = list(flow.of(node.args[0]))
    dim = argument(node, "dim")
    flow.pin([axes[dim]], "every value counts, in order")
    value = node.meta[KEY]
    if isinstance(value, torch.Tensor):
        axes[dim] = flow.pinned(flow.shape(node)[dim], "every value counts, in order")
        return tuple(axes)
    return (tuple(axes),) * len(value)


# -- normalization ---------------------------------------------------------------------------------------------------


def batch_norm(flow: Flow, node: fx.Node) -> Axes:
    """batch_norm(x [batch, channels, ..], four vectors), instance_norm the same."""
    axes = flow.of(node.args[0])
    for vector in node.args[1:5]:
        if vector is not None:
            flow.same(flow.of(vector)[0], axes[1])
    return axes


def layer_norm(flow: Flow, node: fx.Node) -> Axes:
    """layer_norm(x, normalized shape, weight, bias): statistics are of what is left."""
    axes = flow.of(node.args[0])
    _tie_affine(flow, node, axes)
    return axes


def _tie_affine(flow: Flow, node: fx.Node, axes: Axes) -> Axes:
    normalized = axes[-len(argument(node, "normalized_shape")) :]
    for name in ("weight", "bias"):
        vector = argument(node, name) if name == "weight" or node.target is aten.layer_norm.default else None
        if vector is not None:
            for ours, theirs in zip(flow.of(vector), normalized, strict=True):
                flow.same(ours, theirs)
    flow.sized(node, "normalized_shape", normalized)
    return normalized


def rms_norm(flow: Flow, node: fx.Node) -> Axes:
    """rms_norm(x, normalized shape, weight, eps): the mean of squares keeps its divisor."""
    axes = flow.of(node.args[0])
    normalized = _tie_affine(flow, node, axes)
    flow.change(node, normalized, _rescale_rms(normalized))
    return axes


def _rescale_rms(normalized: Axes) -> Action:
    """x / sqrt(sum(x^2) / D + eps) is sqrt(D/D') x / sqrt(sum(x^2) / D' + eps D/D')."""

    def action(program: Program, node: fx.Node, size: Size) -> None:
        ratio = math.prod(axis.size / size(axis) for axis in normalized)
        eps = argument(node, "eps")
        eps = torch.finfo(node.meta[KEY].dtype).eps if eps is None else eps
        set_argument(node, "eps", eps * ratio)
        users = list(node.users)
        with program.graph.inserting_after(node):
            scaled = program.graph.call_function(aten.mul.Tensor, (node, math.sqrt(ratio)))
        scaled.meta = {**node.meta}
        for user in users:
            user.replace_input_with(node, scaled)

    return action


def group_norm(flow: Flow, node: fx.Node) -> Axes:
    """group_norm(x [batch, channels, ..], groups): whole groups go, or the same channel of every group."""
    axes = flow.of(node.args[0])
    groups = flow.fresh(argument(node, "num_groups"), "groups")
    if groups.size > 1:
        flow.same(axes[1], product([groups, flow.fresh(axes[1].size // groups.size, "channels")]))
        flow.sized(node, "num_groups", groups)
    for name in ("weight", "bias"):
        if (vector := argument(node, name)) is not None:
            flow.same(flow.of(vector)[0], axes[1])
    return axes


def weight_norm(flow: Flow, node: fx.Node) -> Axes:
    """_weight_norm(v, g, dim): v scaled to norm g along all dimensions but one. Those normalized over stay."""
    v, g = flow.of(node.args[0]), flow.of(node.args[1])
    dim = argument(node, "dim")
    flow.pin([axis for place, axis in enumerate(v) if place != dim % len(v)], "its norm is a parameter")
    flow.broadcast([v, g])
    return v


# -- space -----------------------------------------------------------------------------------------------------------


def over_space(dims: int) -> Rule:
    """Pooling, resizing: the last dimensions are space and change, those before pass through."""

    def rule(flow: Flow, node: fx.Node) -> Any:
        axes = flow.of(node.args[0])
        flow.pin(axes[-dims:], "spatial")
        value = node.meta[KEY]
        first = value if isinstance(value, torch.Tensor) else value[0]
        result = (*axes[:-dims], *(flow.pinned(size, "spatial") for size in flow.sizes(first)[-dims:]))
        return result if isinstance(value, torch.Tensor) else (result,) * len(value)

    return rule


def _overloads(*names: str) -> list[Any]:
    packets = [getattr(aten, name, None) for name in names]
    return [
        getattr(packet, overload)
        for packet in packets
        if packet is not None
        for overload in packet.overloads()
        if "out" not in overload
    ]


def _spatial(dims: int) -> list[Any]:
    pools = [
        f"{kind}_pool{dims}d"
        for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "_adaptive_avg", "fractional_max")
    ]
    names = [*pools, f"max_pool{dims}d_with_indices", f"reflection_pad{dims}d", f"replication_pad{dims}d"]
    resizing = {1: ("linear", "nearest"), 2: ("bilinear", "nearest", "bicubic"), 3: ("trilinear", "nearest")}
    names += [f"upsample_{kind}{dims}d" for kind in resizing[dims]]
    names += [
        f"_upsample_nearest_exact{dims}d",
        *(["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"] if dims == 2 else []),
    ]
    return _overloads(*names)


_PLAIN = ("sum", "amax", "amin", "logsumexp", "any", "linalg_vector_norm", "norm", "argmax", "argmin", "count_nonzero")

TABLE: dict[Any, Rule] = {
    **dict.fromkeys(_overloads(*_PLAIN), reduce),
    aten.max.dim: reduce,
    aten.min.dim: reduce,
    aten.max.default: reduce,
    aten.min.default: reduce,
    aten.mean.dim: mean,
    aten.mean.default: mean,
    aten.var.correction: deviation,
    aten.std.correction: deviation,
    aten.var.dim: deviation,
    aten.std.dim: deviation,
    aten.prod.dim_int: whole,
    aten.prod.default: whole,
    aten.all.default: whole,
    aten.all.dim: whole,
    **dict.fromkeys(
        (aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default),
        along,
    ),
    **dict.fromkeys(
        (
            aten.cumsum.default,
            aten.cumprod.default,
            aten.sort.default,
            aten.sort.stable,
            aten.argsort.default,
            aten.diff.default,
            aten.cummax.default,
            aten.logcumsumexp.default,
        ),
        along_whole,
    ),
    aten.batch_norm.default: batch_norm,
    aten.instance_norm.default: batch_norm,
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.group_norm.default: group_norm,
    aten._weight_norm.default: weight_norm,
    **{overload: over_space(dims) for dims in (1, 2, 3) for overload in _spatial(dims)},
}
