"""The integer form of each operator. A table: add a line, and a short function, to teach lowering a new one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from tersor.ir.errors import PassError
from tersor.ir.integer_operators import (
    INT_ADD,
    INT_CONV,
    INT_LINEAR,
    INT_MATMUL,
    INT_MAX_POOL,
    INT_MUL,
    INT_RESIZE_NEAREST,
)
from tersor.ir.integer_stage import is_lowered
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, OBSERVE, bias_scale, quantize_bias
from tersor.ir.shapes import KEY

from ..arguments import argument, spatial
from ..quantization.integer_grid import IntegerGrid
from ..quantization.roles import WEIGHTS, Role, constant_factor, operands, role_of, roles
from .lowering import Lowering, Rules, along
from .reductions import REDUCTIONS

aten = torch.ops.aten

# -- values whose inputs decide their grid ---------------------------------------------------------------------------


def _fake_quantize(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    if not is_lowered(lowering.program, node):
        return None
    if lowering.program.constant(node.args[0]) is not None:
        return lowering.weight(node)
    return lowering.quantized(node, IntegerGrid.of(lowering.program, node))


def _observe(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    raise PassError("a value was observed and never calibrated", node=node, hint="run Calibrate(batches) before")


def _weighted(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    """Convolution or linear on integers. A bias that is not on the accumulator's grid yet is put there."""
    layout = WEIGHTS[node.target]
    x, weight = lowering.integer(node.args[0]), lowering.integer(node.args[layout.weight])
    if x is None or weight is None or x.args[3] is not None or weight.args[2] != 0:
        return None
    rank, weight_rank = (source.meta[KEY].dim() for source in (x, weight))
    linear = node.target is aten.linear.default
    if (rank != weight_rank and not linear) or weight_rank < 2 or weight.args[3] not in (None, 0):
        return None
    steps = lowering.scale(x), lowering.scale(weight)
    bias = node.args[layout.bias] if len(node.args) > layout.bias else None
    stored = None
    if bias is not None:
        tensor = lowering.program.constant(_behind_fake_quantize(bias))
        if tensor is None:
            return None
        stored = lowering.parameter(f"{node.name}.bias_int32", quantize_bias(tensor.detach(), *steps))
    combined = bias_scale(*steps)
    axis = None if not combined.dim() else rank - 1 if linear else 1
    arguments = (x.args[0], weight.args[0], stored, x.args[2])
    if linear:
        return lowering.accumulate(INT_LINEAR, *arguments, scale=combined, axis=axis, like=node)
    geometry = [spatial(node, name, weight_rank - 2) for name in ("stride", "padding", "dilation")]
    groups = argument(node, "groups")
    return lowering.accumulate(INT_CONV, *arguments, *geometry, groups, scale=combined, axis=axis, like=node)


def _behind_fake_quantize(bias: Any) -> Any:
    return bias.args[0] if isinstance(bias, fx.Node) and bias.target is FAKE_QUANTIZE_BIAS else bias


def _matmul(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    sides = [lowering.integer(side) for side in node.args[:2]]
    left, right = sides
    if left is None or right is None or any(side.args[3] is not None for side in (left, right)):
        return None
    combined = (lowering.scale(left) * lowering.scale(right)).float()
    arguments = (left.args[0], right.args[0], left.args[2], right.args[2])
    return lowering.accumulate(INT_MATMUL, *arguments, scale=combined, axis=None, like=node)


def _move_value(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    """Movement of a value that is on a grid: its result is on the same."""
    if role_of(lowering.program, node) not in (Role.MOVE, Role.JOIN) or not isinstance(node.meta[KEY], torch.Tensor):
        return None
    inner = node.args[0] if node.target is operator.getitem else node
    assert isinstance(inner, fx.Node)
    sources = [lowering.integer(source) for source in operands(lowering.program, inner)]
    first = sources[0] if sources else None
    if first is None or first.args[3] is not None:
        return None
    if not all(source is not None and lowering.same_values(source, first) for source in sources):
        return None
    zero_point = first.args[2]
    assert isinstance(zero_point, int)
    held = {source: _stored(source) for source in sources if source is not None}
    if inner is not node:
        if inner not in lowering.parts:
            lowering.parts[inner] = move(lowering, inner, held, zero_point)
        held = {inner: lowering.parts[inner]}
    return lowering.same_grid(move(lowering, node, held, zero_point), first, node)


def _stored(dequantized: fx.Node) -> fx.Node:
    q = dequantized.args[0]
    assert isinstance(q, fx.Node)
    return q


def _order(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    """Which of the values is greatest does not depend on their scale."""
    source = lowering.integer(node.args[0])
    if source is not None and source.args[3] is None:
        node.update_arg(0, _stored(source))
    return None


# -- results that are wanted on a grid -------------------------------------------------------------------------------


def _two_on_grids(lowering: Lowering, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    sides = [lowering.integer(side) for side in node.args[:2]]
    left, right = sides
    if left is None or right is None or left.args[3] is not None or right.args[3] is not None:
        return None
    return left, right


def _sum(sign: int) -> Callable[[Lowering, fx.Node, IntegerGrid], fx.Node | None]:
    def rule(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
        sides = _two_on_grids(lowering, node)
        if sides is None or node.kwargs.get("alpha", 1) != 1:
            return None
        signs = iter((1, sign))
        given = [item for side in sides for item in (next(signs) * float(lowering.scale(side)), side.args[2])]
        output = float(grid.step(lowering.program)), grid.zero_point, grid.quant_min, grid.quant_max
        values = [side.args[0] for side in sides]
        return lowering.call(INT_ADD, *values, *given, *output, like=node)

    return rule


def _product(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
    if constant_factor(node) is not None:
        return _scaled(lowering, node, grid)
    sides = _two_on_grids(lowering, node)
    if sides is None:
        return None
    acc = lowering.call(INT_MUL, *(side.args[i] for i in (0, 2) for side in sides), like=node)
    scale = (lowering.scale(sides[0]) * lowering.scale(sides[1])).float()
    return lowering.requantize(acc, (scale / grid.step(lowering.program)).float(), grid, node)


def _scaled(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
    """Accumulators times a constant: it goes into the multiplier."""
    source, factor = lowering.integer(node.args[0], torch.int32), constant_factor(node)
    if source is None or factor is None or (factor < 0 and source.args[3] is not None):
        return None
    scale, stored = (lowering.scale(source) * torch.tensor(factor)).float(), _stored(source)
    multiplier = along((scale / grid.step(lowering.program)).float(), stored, source.args[3])
    return lowering.requantize(stored, multiplier, grid, node)


def _embedding(lowering: Lowering, node: fx.Node, grid: IntegerGrid) -> fx.Node | None:
    source = node.args[0]
    if not isinstance(source, fx.Node) or lowering.program.constant(source) is None:
        return None
    stored = lowering.on_grid(source, grid, node)
    return lowering.call(aten.embedding.default, stored, *node.args[1:], like=node)


# -- movement --------------------------------------------------------------------------------------------------------

_POOLS = {aten.max_pool1d.default: 1, aten.max_pool2d.default: 2}
_RESIZES = (aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec)


def move(lowering: Lowering, node: fx.Node, held: Mapping[fx.Node, fx.Node], zero_point: int) -> fx.Node:
    """The movement that `node` makes, of the integers that `held` has for its inputs."""
    source = node.args[0]
    if node.target in _POOLS:
        kernel, stride, padding, dilation = (
            spatial(node, name, _POOLS[node.target]) for name in ("kernel_size", "stride", "padding", "dilation")
        )
        window = kernel, stride or kernel, padding, dilation, bool(argument(node, "ceil_mode"))
        return lowering.call(INT_MAX_POOL, held[source], *window, like=node)  # type: ignore[index]
    if node.target in _RESIZES:
        return _resize(lowering, node, held[source])  # type: ignore[index]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: held.get(argument, argument))
    if node.target is aten.constant_pad_nd.default:
        args = (*args[:2], zero_point)
    elif node.target is aten.pad.default:
        return lowering.call(aten.constant_pad_nd.default, args[0], args[1], zero_point, like=node)
    return lowering.call(node.target, *args, like=node, **kwargs)


def _resize(lowering: Lowering, node: fx.Node, q: fx.Node) -> fx.Node:
    if node.target is aten.upsample_nearest2d.vec:
        scales = argument(node, "scale_factors")
    else:
        scales = argument(node, "scales_h"), argument(node, "scales_w")
        scales = None if None in scales else list(scales)
    size = argument(node, "output_size") or list(node.meta[KEY].shape[2:])
    known = all(isinstance(length, int | fx.Node) for length in size)
    return lowering.call(INT_RESIZE_NEAREST, q, size if known else None, scales, like=node)


RULES = Rules(
    values={
        **dict.fromkeys(roles(Role.MOVE, Role.JOIN), _move_value),
        **dict.fromkeys(WEIGHTS, _weighted),
        **dict.fromkeys((aten.matmul.default, aten.bmm.default), _matmul),
        **dict.fromkeys((aten.argmax.default, aten.argmin.default), _order),
        FAKE_QUANTIZE: _fake_quantize,
        OBSERVE: _observe,
    },
    grids={
        aten.add.Tensor: _sum(1),
        aten.sub.Tensor: _sum(-1),
        aten.mul.Tensor: _product,
        **dict.fromkeys((aten.mul.Scalar, aten.div.Scalar, aten.div.Tensor), _scaled),
        aten.embedding.default: _embedding,
        **REDUCTIONS,
    },
    move=move,
)
