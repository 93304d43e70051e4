"""Arithmetic on sizes: integer tensors whose items are numbers and size nodes.

Operators that only move items are run on the items' places: what they do to `arange` they do to the sizes. Elementwise
arithmetic is done item by item. An operator that is in neither table gets the sizes as a tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from tersor.ir.shapes import KEY

from .values import Known, Size, Sizes

if TYPE_CHECKING:
    from .importer import Importer

aten = torch.ops.aten

_MOST_ITEMS = 4096

_MOVES: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            aten.select.int,
            aten.index_select.default,
            aten.index.Tensor,
            aten.gather.default,
            aten.slice.Tensor,
            aten.cat.default,
            aten.stack.default,
            aten.reshape.default,
            aten.flatten.using_ints,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
            aten.expand.default,
            aten.permute.default,
            aten.split_with_sizes.default,
            aten.unbind.int,
            aten.flip.default,
            aten.repeat.default,
            aten.clone.default,
        ),
        (0,),
    ),
    aten.where.self: (1, 2),
}
"""Operators that move items -> the arguments that hold those items; all others must be known."""

_GROWS = frozenset(
    {
        aten.cat.default,
        aten.expand.default,
        aten.gather.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.repeat.default,
        aten.stack.default,
        aten.where.self,
    }
)
"""Those that may give more items than they take."""

_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor_mode: operator.floordiv,
    aten.floor_divide.default: operator.floordiv,
    aten.remainder.Tensor: operator.mod,
    aten.maximum.default: torch.sym_max,
    aten.minimum.default: torch.sym_min,
    aten.neg.default: operator.neg,
}

_COMPARISONS: dict[Any, tuple[Callable[..., Any], Callable[..., Any]]] = {
    aten.eq.Tensor: (operator.eq, operator.ne),
    aten.ne.Tensor: (operator.ne, operator.eq),
    aten.lt.Tensor: (operator.lt, operator.ge),
    aten.le.Tensor: (operator.le, operator.gt),
    aten.gt.Tensor: (operator.gt, operator.le),
    aten.ge.Tensor: (operator.ge, operator.lt),
}
"""Comparison -> what it asks, and what is asked to know that it is false."""

_DIVISIONS = frozenset({operator.floordiv, operator.mod})


def make_sizes(items: Sequence[Size], shape: Sequence[int], dtype: torch.dtype = torch.int64) -> Known | Sizes:
    """Sizes, or a known tensor where all are numbers."""
    numbers = [item for item in items if isinstance(item, int)]
    if len(numbers) == len(items):
        return Known(torch.tensor(numbers, dtype=dtype).reshape(tuple(shape)))
    return Sizes(tuple(items), tuple(shape), dtype)


def as_sizes(value: Any) -> Sizes | None:
    """A value as sizes where it is a small integer tensor that is known, or sizes, or a number."""
    if isinstance(value, Sizes):
        return value
    if isinstance(value, int):
        return Sizes((value,), ())
    if not isinstance(value, Known) or value.tensor.is_floating_point() or value.tensor.is_complex():
        return None
    if value.tensor.numel() > _MOST_ITEMS:
        return None
    return Sizes(tuple(value.tensor.flatten().tolist()), tuple(value.tensor.shape), value.tensor.dtype)


def fold_sizes(importer: Importer, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operator on sizes, as sizes; None where it is not one that can be computed so."""
    if target in _MOVES:
        return _move(target, args, kwargs)
    if target is aten._to_copy.default:
        return _cast(args[0], kwargs)
    if target is aten.prod.default and isinstance(args[0], Sizes):
        return make_sizes([importer.product(args[0].items)], ())
    operands = [operand for operand in map(as_sizes, args) if operand is not None]
    if len(operands) < len(args) or (kwargs.keys() - {"rounding_mode"}):
        return None
    if torch.broadcast_shapes(*(operand.shape for operand in operands)).numel() > _MOST_ITEMS:
        return None
    columns, shape = _broadcast(operands)
    if target in _COMPARISONS:
        return _compare(target, columns, shape)
    return _arithmetic(importer, target, columns, shape, kwargs)


def _move(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the operator on places, then look up what stands there."""
    pool: list[Size] = []
    dtype: list[torch.dtype] = []

    def places(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [places(item) for item in value]
        sizes = as_sizes(value)
        if sizes is None:
            raise LookupError
        start = len(pool)
        pool.extend(sizes.items)
        dtype.append(sizes.dtype)
        return torch.arange(start, len(pool)).reshape(sizes.shape)

    try:
        moved = [places(a) if i in _MOVES[target] else _plain(a) for i, a in enumerate(args)]
        options = {key: _plain(item) for key, item in kwargs.items()}
    except LookupError:
        return None
    if target in _GROWS and _on_meta(target, moved, options).numel() > _MOST_ITEMS:
        return None
    result = target(*moved, **options)
    return _looked_up(result, pool, dtype[0])


def _on_meta(target: Any, args: Any, options: dict[str, Any]) -> Tensor:
    """The result without its items: there may be any number of them."""
    result: Tensor = target(*fx.node.map_aggregate(args, _without_data), **options)
    return result


def _without_data(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    """An argument without sizes in it."""
    if isinstance(value, Known):
        return value.tensor
    if isinstance(value, Sizes | fx.Node):
        raise LookupError
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _looked_up(result: Any, pool: Sequence[Size], dtype: torch.dtype) -> Any:
    if isinstance(result, Tensor):
        return make_sizes([pool[place] for place in result.flatten().tolist()], tuple(result.shape), dtype)
    return tuple(_looked_up(item, pool, dtype) for item in result)


def _cast(value: Any, kwargs: dict[str, Any]) -> Sizes | None:
    dtype = kwargs.get("dtype", torch.int64)
    if not isinstance(value, Sizes) or kwargs.keys() != {"dtype"} or dtype not in (torch.int64, torch.int32):
        return None
    return Sizes(value.items, value.shape, dtype)


def _broadcast(operands: Sequence[Sizes]) -> tuple[list[tuple[Size, ...]], tuple[int, ...]]:
    """The operands of each item of the result, and the result's shape."""
    places = [torch.arange(len(operand.items)).reshape(operand.shape) for operand in operands]
    spread = torch.broadcast_tensors(*places)
    rows = [
        [operand.items[index] for index in place.flatten().tolist()]
        for operand, place in zip(operands, spread, strict=True)
    ]
    return list(zip(*rows, strict=True)), tuple(spread[0].shape)


def _arithmetic(
    importer: Importer, target: Any, columns: list[tuple[Size, ...]], shape: tuple[int, ...], kwargs: dict[str, Any]
) -> Known | Sizes | None:
    function = _ARITHMETIC.get(target)
    if function is None or kwargs.get("rounding_mode") == "floor":
        return None
    if function in _DIVISIONS and any(isinstance(item, int) and item <= 0 for column in columns for item in column[1:]):
        return None
    if function in _DIVISIONS and any(isinstance(column[0], int) and column[0] < 0 for column in columns):
        return None
    return make_sizes([importer.size(function, *column) for column in columns], shape)


def _compare(target: Any, columns: list[tuple[Size, ...]], shape: tuple[int, ...]) -> Known | None:
    """The answers, where all are certain whatever the sizes are."""
    asks, denies = _COMPARISONS[target]
    answers: list[bool] = []
    for column in columns:
        left, right = (item if isinstance(item, int) else item.meta[KEY] for item in column)
        if statically_known_true(asks(left, right)):
            answers.append(True)
        elif statically_known_true(denies(left, right)):
            answers.append(False)
        else:
            return None
    return Known(torch.tensor(answers).reshape(shape))
