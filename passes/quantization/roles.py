"""What each operator is to quantization. A table: add a line to teach placement a new operator."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tersor.ir.integer_operators import DEQUANTIZE
from tersor.ir.movement import SELECTIONS
from tersor.ir.operators import FAKE_QUANTIZE, OBSERVE
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..arguments import PADS, padded_with
from .elementwise import is_unary

aten = torch.ops.aten


SOFTMAXES = (aten.softmax.int, aten._safe_softmax.default)
_HIDING = -1e30
"""What is less is as good as minus infinity before a softmax."""


class Role(enum.Enum):
    """How an operator treats quantized values.

    COMPUTE: multiplies activations with a weight, accumulating in int32.
    ELEMENTWISE: reads values on grids and gives values on a grid of its own.
    LOOKUP: the same of one value at a time, by a table.
    JOIN: its inputs and its output share one grid.
    MOVE: moves or selects values, so the output is on the input's grid.
    HIDE: hides positions from a softmax, by minus infinity; the others keep the input's grid.
    CLAMP: cuts values off; fused into the operator before it.
    FLOAT: computes in float.
    """

    COMPUTE = "compute"
    ELEMENTWISE = "elementwise"
    LOOKUP = "lookup"
    JOIN = "join"
    MOVE = "move"
    HIDE = "hide"
    CLAMP = "clamp"
    FLOAT = "float"


@dataclass(frozen=True)
class WeightLayout:
    """Where a COMPUTE operator has its weight and bias, and the weight's output-channel axis."""

    weight: int
    bias: int
    axis: int
    needs_output_grid: bool


WEIGHTS: dict[object, WeightLayout] = {
    aten.conv1d.default: WeightLayout(1, 2, 0, needs_output_grid=True),
    aten.conv2d.default: WeightLayout(1, 2, 0, needs_output_grid=True),
    aten.conv3d.default: WeightLayout(1, 2, 0, needs_output_grid=True),
    aten.linear.default: WeightLayout(1, 2, 0, needs_output_grid=False),
}
"""needs_output_grid: integer convolution kernels requantize; integer matrix products can give floats."""

_ROLES: dict[object, Role] = {
    **dict.fromkeys(WEIGHTS, Role.COMPUTE),
    **dict.fromkeys(
        (
            aten.add.Tensor,
            aten.sub.Tensor,
            aten.mul.Tensor,
            aten.matmul.default,
            aten.bmm.default,
            aten.softmax.int,
            aten._safe_softmax.default,
            aten.layer_norm.default,
            aten.rms_norm.default,
            aten.group_norm.default,
            aten.instance_norm.default,
            aten.sum.dim_IntList,
            aten.avg_pool1d.default,
            aten.avg_pool2d.default,
            aten.adaptive_avg_pool2d.default,
            aten.mean.dim,
        ),
        Role.ELEMENTWISE,
    ),
    **dict.fromkeys(
        (
            aten.sigmoid.default,
            aten.leaky_relu.default,
            aten.tanh.default,
            aten.gelu.default,
            aten.silu.default,
            aten.hardswish.default,
            aten.hardsigmoid.default,
            aten.elu.default,
            aten.mish.default,
            aten.softplus.default,
            aten.exp.default,
            aten.sqrt.default,
            aten.rsqrt.default,
            aten.abs.default,
            aten.neg.default,
        ),
        Role.LOOKUP,
    ),
    **dict.fromkeys((aten.cat.default, aten.stack.default), Role.JOIN),
    **dict.fromkeys((*SELECTIONS, *PADS), Role.MOVE),
    aten.masked_fill.Scalar: Role.HIDE,
    **dict.fromkeys((aten.relu.default, aten.hardtanh.default, aten.clamp.default, aten.relu6.default), Role.CLAMP),
}


FAST_LOOKUPS = frozenset({aten.sigmoid.default, aten.leaky_relu.default})
"""Lookups that a kernel for CPUs with floating point has in integer too."""


SLOW_IN_INTEGER = frozenset(
    {
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.bmm.default,
        aten.group_norm.default,
        aten.instance_norm.default,
        aten.layer_norm.default,
        aten.matmul.default,
        aten.rms_norm.default,
        aten.softmax.int,
        aten._safe_softmax.default,
        aten.sub.Tensor,
        aten.sum.dim_IntList,
    }
)
"""Operators that such a kernel has in integer not at all, or many times slower than in float."""

PRODUCTS = (aten.matmul.default, aten.bmm.default)
"""Products of two activations, which accumulate."""

CARRIERS = (Role.MOVE, Role.HIDE)
"""Roles whose values are on the grid of their input."""

_ONE_OPERAND = frozenset(
    {aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default, aten.instance_norm.default}
)
"""Operators that read one activation; their other tensors are parameters."""


def roles(*wanted: Role) -> list[object]:
    """The operators that have one of these roles."""
    return [target for target, role in _ROLES.items() if role in wanted]


def role_of(program: Program, node: fx.Node) -> Role:
    """The role of a node, judged by its operator and by what it is called with."""
    if node.op != "call_function" or not _is_float(node):
        return Role.FLOAT
    role, check = _ROLES.get(node.target), _CONDITIONS.get(node.target)
    if role is not None and (check is None or check(program, node)):
        return role
    return Role.LOOKUP if is_unary(program, node) else Role.FLOAT


def is_slow(program: Program, node: fx.Node) -> bool:
    """Whether kernels for CPUs with floating point have a quantized form not at all, or a slow one."""
    return node.target in SLOW_IN_INTEGER or (node.target is aten.mean.dim and not _is_global_pool(program, node))


def operands(program: Program, node: fx.Node) -> list[fx.Node]:
    """The activations that a node reads: its tensor inputs, without a weight and a bias, or the pattern of a move."""
    role = role_of(program, node)
    if role is Role.LOOKUP:
        return [argument for argument in node.all_input_nodes if program.constant(argument) is None]
    if role in (Role.COMPUTE, Role.MOVE, Role.HIDE, Role.CLAMP) or node.target in _ONE_OPERAND:
        first = node.args[0]
        return [first] if isinstance(first, fx.Node) else []
    if role is Role.JOIN:
        return [item for item in node.args[0] if isinstance(item, fx.Node)]  # type: ignore[union-attr]
    return [argument for argument in node.args if isinstance(argument, fx.Node) and _is_float(argument)]


def clamp_range(node: fx.Node) -> tuple[float, float]:
    """The least and greatest value that a CLAMP gives."""
    if node.target is aten.relu.default:
        return 0.0, float("inf")
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    default = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", node.kwargs.get("min_val", default[0]))
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max", node.kwargs.get("max_val", default[1]))
    return (
        float(low) if isinstance(low, int | float) else float("-inf"),
        float(high) if isinstance(high, int | float) else float("inf"),
    )


def constant_factor(node: fx.Node) -> float | None:
    """What a node multiplies its one tensor by, where that is a positive number."""
    if node.target not in _FACTORS or len(node.args) != 2 or node.kwargs or not _is_float(node):
        return None
    number = node.args[1]
    if not isinstance(number, int | float) or not 0 < number < float("inf"):
        return None
    return float(number) if _FACTORS[node.target] else 1 / float(number)


_FACTORS = {
    aten.mul.Tensor: True,
    aten.mul.Scalar: True,
    aten.div.Tensor: False,
    aten.div.Scalar: False,
}


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get(KEY)
    value = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(value, Tensor) and bool(value.is_floating_point())


def _has_constant_weight(program: Program, node: fx.Node) -> bool:
    weight = node.args[WEIGHTS[node.target].weight]
    if isinstance(weight, fx.Node) and weight.target in (FAKE_QUANTIZE, OBSERVE, DEQUANTIZE):
        weight = weight.args[0]
    return program.constant(weight) is not None


def _has_constant_bounds(program: Program, node: fx.Node) -> bool:
    return all(isinstance(bound, int | float | None) for bound in (*node.args[1:], *node.kwargs.values()))


def _is_of_tensors(program: Program, node: fx.Node) -> bool:
    both = isinstance(node.args[0], fx.Node) and isinstance(node.args[1], fx.Node)
    floats = both and all(_is_float(n) for n in node.args if isinstance(n, fx.Node))
    return floats and bool(node.kwargs.get("alpha", 1) == 1)


def _is_of_matrices(program: Program, node: fx.Node) -> bool:
    return _is_of_tensors(program, node) and all(n.meta[KEY].dim() >= 2 for n in node.all_input_nodes)


def _is_over_known_sizes(program: Program, node: fx.Node) -> bool:
    """A sum or mean over dimensions of fixed sizes, in the type of its input."""
    source, dims = node.args[0].meta[KEY], node.args[1]  # type: ignore[union-attr]
    chosen = dims or range(source.dim())
    fixed = all(type(source.shape[dim]) is int for dim in chosen)  # type: ignore[union-attr]
    return fixed and source.dtype is node.meta[KEY].dtype


def _hides_positions(program: Program, node: fx.Node) -> bool:
    value = node.args[2]
    hides = isinstance(value, int | float) and value < _HIDING
    return hides and bool(node.users) and all(user.target in SOFTMAXES for user in node.users)


def _is_part_of_moved(program: Program, node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and _ROLES.get(source.target) is Role.MOVE


def _is_global_pool(program: Program, node: fx.Node) -> bool:
    """A mean over both spatial dimensions of a batch of images, however it is written."""
    source = node.args[0].meta[KEY]  # type: ignore[union-attr]
    if source.dim() != 4:
        return False
    if node.target is aten.adaptive_avg_pool2d.default:
        return list(node.args[1]) in ([1, 1], [1])  # type: ignore[arg-type]
    return sorted(dim % 4 for dim in node.args[1] or ()) == [2, 3]  # type: ignore[operator, union-attr]


def _pads_with_zero(program: Program, node: fx.Node) -> bool:
    return padded_with(node) == 0


def _normalizes_each_image(program: Program, node: fx.Node) -> bool:
    """An instance norm by the statistics of its input, not by stored ones."""
    return len(node.args) > 5 and bool(node.args[5])


_CONDITIONS = {
    **dict.fromkeys(WEIGHTS, _has_constant_weight),
    aten.clamp.default: _has_constant_bounds,
    aten.add.Tensor: _is_of_tensors,
    aten.sub.Tensor: _is_of_tensors,
    aten.mul.Tensor: _is_of_tensors,
    aten.matmul.default: _is_of_matrices,
    aten.bmm.default: _is_of_matrices,
    aten.adaptive_avg_pool2d.default: _is_global_pool,
    aten.instance_norm.default: _normalizes_each_image,
    aten.mean.dim: _is_over_known_sizes,
    aten.sum.dim_IntList: _is_over_known_sizes,
    aten.masked_fill.Scalar: _hides_positions,
    operator.getitem: _is_part_of_moved,
    aten.pad.default: _pads_with_zero,
    aten.constant_pad_nd.default: _pads_with_zero,
}
