"""Types of new nodes. torch infers one in about a millisecond; models repeat layers, so each kind is asked once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.errors import TraceError, VerificationError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY, infer

from .budget import MOST_AXES, MOST_DYNAMIC
from .equal_dimensions import UnequalDimensionsError, dims_of

WORK_OF_NEW = 40
_WORK_OF_KNOWN = 2
_LARGEST_SIZE = (1 << 63) - 1
_LONGEST_FORMULA = 300
_OF_DATA = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})


class Inference:
    """`infer`, which remembers: the same operator on inputs of the same types and the same numbers gives one type."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.work = 0
        """What the last value took: little where it was asked for before, much where many axes are dynamic."""
        self._results: dict[Hashable, Any] = {}
        self._keys: dict[fx.Node, Hashable] = {}

    def value(self, node: fx.Node) -> Any:
        """The node's fake tensor, size, or tuple of those. Raises VerificationError as `infer` does."""
        self.work = _WORK_OF_KNOWN
        try:
            key = (node.target, self._key(node.args), self._key(node.kwargs))
            if key in self._results:
                return self._results[key]
        except _Unknown:
            return self._inferred(node)
        result = self._inferred(node)
        if isinstance(node.target, torch._ops.OpOverload) and not _OF_DATA & set(node.target.tags):
            self._results[key] = result
        return result

    def _inferred(self, node: fx.Node) -> Any:
        try:
            result = infer(self.program, node)
        except VerificationError as error:
            dims = dims_of(self.program, node)
            if len(dims) > 1:
                raise UnequalDimensionsError(error, dims) from error
            raise
        self.work = WORK_OF_NEW
        for item in result if isinstance(result, tuple | list) else (result,):
            sizes = item.shape if isinstance(item, Tensor) else (item,)
            dynamic = [size for size in sizes if isinstance(size, torch.SymInt)]
            if len(sizes) > MOST_AXES or len(dynamic) > MOST_DYNAMIC:
                expected = f"at most {MOST_AXES}, {MOST_DYNAMIC} of them dynamic"
                raise TraceError("a tensor has too many axes", expected=expected, found=f"{len(sizes)}, {len(dynamic)}")
            self.work = max(self.work, WORK_OF_NEW * max(len(dynamic) - 3, 1) ** 2)
            for size in dynamic:
                _refuse_unwieldy(size)
        return result

    def _key(self, argument: Any) -> Hashable:
        if isinstance(argument, fx.Node):
            if argument not in self._keys:
                self._keys[argument] = _type(argument.meta[KEY])
            return self._keys[argument]
        if isinstance(argument, tuple | list):
            return tuple(self._key(item) for item in argument)
        if isinstance(argument, dict):
            return tuple((name, self._key(item)) for name, item in argument.items())
        return type(argument), argument


class _Unknown(Exception):  # noqa: N818  # not an error: the way out of nested arguments
    """An argument whose type is no key."""


def _refuse_unwieldy(size: torch.SymInt) -> None:
    """Raises TraceError for a size whose formula takes sympy long, as one that a loop multiplied again and again."""
    hint = size.node.hint
    if isinstance(hint, int) and abs(hint) > _LARGEST_SIZE:
        raise TraceError("a size is beyond 64 bits", expected=f"at most {_LARGEST_SIZE}")
    if size.node.expr.count_ops() > _LONGEST_FORMULA:
        raise TraceError("a size is computed by too long a formula", expected=f"at most {_LONGEST_FORMULA} operations")


def _type(value: Any) -> Hashable:
    """What shape functions look at: dtype, sizes and strides; symbolic ones as expressions."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(map(_size, value.shape)), tuple(map(_size, value.stride()))
    if isinstance(value, torch.SymInt):
        return torch.SymInt, _size(value)
    raise _Unknown


def _size(size: Any) -> Hashable:
    expression: Hashable = size if isinstance(size, int) else size.node.expr
    return expression
