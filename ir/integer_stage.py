"""The verifier's rules about integers: what a program of the integer stage holds, and what one before it does not.

Operators get the types and the numbers that their definition is for, so that a program that verifies gives the same
bits on every target: no accumulator overflows, no division by zero, no value beyond its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from . import integer_norms as norms
from . import integer_operators as ops
from .accumulators import INT32_LIMIT, accumulator_range, is_accumulator
from .errors import VerificationError
from .operators import FAKE_QUANTIZE, OBSERVE
from .shapes import KEY
from .stage import Stage

if TYPE_CHECKING:
    from .program import Program

_INT8 = torch.iinfo(torch.int8)
_F32, _I32, _I8 = (torch.float32,), (torch.int32,), (torch.int8,)
_TABLE_LENGTH = 256

OPERANDS: dict[object, tuple[tuple[torch.dtype, ...], ...]] = {
    ops.QUANTIZE: (_F32, _F32),
    ops.DEQUANTIZE: (_I8 + _I32, _F32),
    ops.REQUANTIZE: (_I32, _F32),
    ops.INT_CONV: (_I8, _I8, _I32),
    ops.INT_LINEAR: (_I8, _I8, _I32),
    ops.INT_MATMUL: (_I8, _I8),
    ops.INT_MUL: (_I8, _I8),
    ops.INT_ADD: (_I8, _I8),
    ops.INT_SUM: (_I8,),
    ops.INT_SUM_POOL: (_I8,),
    ops.INT_MAX_POOL: (_I8,),
    ops.INT_RESIZE_NEAREST: (_I8,),
    ops.INT_LOOKUP: (_I8, _I8),
    norms.INT_SOFTMAX: (_I8, _I32),
    norms.INT_NORMALIZE: (_I8, _I32, _I32),
}
"""Every operator of the integer stage, with the types that its tensors may have, in the order of its arguments."""

_POSITIVE = {ops.QUANTIZE: "scale", ops.DEQUANTIZE: "scale", ops.REQUANTIZE: "multiplier"}
"""Operators whose second argument is a tensor of positive numbers, and what it is."""
_TABLES = (ops.INT_LOOKUP, norms.INT_SOFTMAX)


def is_lowered(program: Program, node: fx.Node) -> bool:
    """Whether a fake-quantize node has an integer form: quantize, or, of a constant, the stored integers.

    Integers are int8 and stand for float32. One scale serves a whole activation; a constant may have one a channel, as
    long as they share a zero point. Imported models hold others, which stay as they are.
    """
    source, scale, zero_point, axis, quant_min, quant_max = node.args
    fits = _INT8.min <= _integer(quant_min) and _integer(quant_max) <= _INT8.max
    step, zero = program.constant(scale), program.constant(zero_point)
    if not fits or step is None or zero is None or node.meta[KEY].dtype is not torch.float32:
        return False
    if program.constant(source) is not None:
        return bool((zero == zero.flatten()[0]).all())
    return axis is None and step.numel() == zero.numel() == 1


def stage_holds(program: Program) -> None:
    """Integer operators stand at the integer stage alone; there, nothing is left that has an integer form."""
    for node in program.graph.nodes:
        if node.target in OPERANDS and program.stage is not Stage.INTEGER:
            raise VerificationError("an integer operator before its stage", node=node, expected="stage integer")
        if program.stage is not Stage.INTEGER:
            continue
        if node.target is OBSERVE or (node.target is FAKE_QUANTIZE and is_lowered(program, node)):
            raise VerificationError(
                "what has an integer form is left as float", node=node, hint="LowerToInteger()(program)"
            )


def operand_types(program: Program) -> None:
    """The tensors of integer operators have the types of their definition."""
    for node in _integer_nodes(program):
        for argument, allowed in zip(node.args, OPERANDS[node.target], strict=False):
            value = argument.meta[KEY] if isinstance(argument, fx.Node) else None
            if isinstance(value, Tensor) and value.dtype not in allowed:
                expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
                found = f"%{argument.name} of {str(value.dtype).removeprefix('torch.')}"  # type: ignore[union-attr]
                raise VerificationError("an operand has the wrong type", node=node, expected=expected, found=found)


def numbers_well_formed(program: Program) -> None:
    """Scales and multipliers are positive and finite, grids and zero points are of int8, tables are whole."""
    for node in _integer_nodes(program):
        _check_grids(node)
        if node.target in _POSITIVE:
            _check_positive(program, node, _POSITIVE[node.target])
        if node.target in _TABLES:
            _check_table(program, node)
        if node.target is ops.INT_ADD:
            _check_sum(node)
        if node.target is norms.INT_SOFTMAX:
            _check_number(node, "numerator", 1, norms.LARGEST_NUMERATOR)
            _check_hidden(node)
        if node.target is norms.INT_NORMALIZE:
            _check_number(node, "epsilon", 0, norms.LARGEST_EPSILON - 1)
            _check_row(node)


def accumulators_fit(program: Program) -> None:
    """Every int32 accumulator is proven not to overflow, whatever the inputs are."""
    for node in program.graph.nodes:
        if not is_accumulator(node):
            continue
        try:
            reach = accumulator_range(program, node)
        except ValueError as error:
            raise VerificationError("its accumulator has no bound", node=node, found=str(error)) from error
        assert reach is not None
        if reach.worst_partial_sum >= INT32_LIMIT:
            raise VerificationError(
                "its accumulator can overflow int32",
                node=node,
                expected=f"sums below {INT32_LIMIT}",
                found=f"up to {reach.worst_partial_sum}",
            )


def _integer_nodes(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target in OPERANDS]


def _argument(node: fx.Node, name: str) -> Any:
    """The argument of that name; None where the operator has none."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]  # an operator
    return dict(zip(names, node.args, strict=False)).get(name)


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value


def _check_grids(node: fx.Node) -> None:
    for name in ("zero_point", "zero_a", "zero_b"):
        if _argument(node, name) is not None:
            _check_number(node, name, _INT8.min, _INT8.max)
    low, high = _argument(node, "quant_min"), _argument(node, "quant_max")
    if low is not None and not _INT8.min <= low <= high <= _INT8.max:
        raise VerificationError(
            "a grid is not one of int8", node=node, expected="-128 <= quant_min <= quant_max <= 127", found=(low, high)
        )


def _check_number(node: fx.Node, name: str, low: int, high: int) -> None:
    value = _argument(node, name)
    if not low <= value <= high:
        raise VerificationError(f"{name} is out of range", node=node, expected=f"{low} to {high}", found=value)


def _check_positive(program: Program, node: fx.Node, what: str) -> None:
    value = program.constant(node.args[1])
    if value is None:
        raise VerificationError(f"a {what} is a tensor of the program", node=node)
    if not bool((torch.isfinite(value) & (value > 0)).all()):
        raise VerificationError(f"a {what} is not positive and finite", node=node, found=f"{value.min().item():g}")


def _check_table(program: Program, node: fx.Node) -> None:
    table = program.constant(node.args[1])
    if table is None or tuple(table.shape) != (_TABLE_LENGTH,):
        found = None if table is None else list(table.shape)
        raise VerificationError("a table is a tensor of the program", node=node, expected="[256]", found=found)
    if node.target is norms.INT_SOFTMAX:
        one = 1 << norms.EXPONENTIAL_BITS
        if int(table[0]) != one or int(table.min()) < 0 or int(table.max()) > one:
            raise VerificationError("a table is not of exponentials", node=node, expected=f"{one} first, then less")


def _check_sum(node: fx.Node) -> None:
    scales = [_argument(node, name) for name in ("scale_a", "scale_b", "scale")]
    if not all(abs(scale) < float("inf") and scale for scale in scales) or scales[2] <= 0:
        raise VerificationError("a scale is not positive and finite", node=node, found=scales)


def _check_hidden(node: fx.Node) -> None:
    hidden = _argument(node, "hidden")
    if hidden is not None and hidden.meta[KEY].dtype is not torch.bool:
        raise VerificationError(
            "what is hidden is not a mask", node=node, expected="bool", found=hidden.meta[KEY].dtype
        )


def _check_row(node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    sizes, length = source.meta[KEY].shape[-_integer(node.args[4]) :], 1
    for size in sizes:
        length = length * size
    for name in ("weight", "bias"):
        given = _argument(node, name)
        if given is not None and not _broadcasts(given.meta[KEY].shape, source.meta[KEY].shape):
            raise VerificationError(
                f"its {name} fits no row",
                node=node,
                expected=list(source.meta[KEY].shape),
                found=list(given.meta[KEY].shape),
            )
    if type(length) is int and length > norms.LONGEST_ROW:
        raise VerificationError("a row is too long", node=node, expected=f"{norms.LONGEST_ROW} values", found=length)


def _broadcasts(shape: Sequence[object], over: Sequence[object]) -> bool:
    """Whether a shape fits another from the right, size by size or as 1."""
    pairs = zip(reversed(shape), reversed(over), strict=False)
    return len(shape) <= len(over) and all(own in (1, size) for own, size in pairs)


RULES = (stage_holds, operand_types, numbers_well_formed, accumulators_fit)
