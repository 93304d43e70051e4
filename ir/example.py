"""Inputs for a program that has none: a file does not hold them, and a report or a check needs some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from .errors import SignatureError
from .shapes import KEY
from .signature import Range, TensorSpec

if TYPE_CHECKING:
    from .program import Program

aten = torch.ops.aten

_FORWARDS = frozenset(
    {aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.expand.default}
    | {aten.transpose.int, aten.permute.default, aten.slice.Tensor, aten.select.int, aten.flatten.using_ints}
    | {aten.clone.default, aten.alias.default, aten._to_copy.default, aten.cat.default, aten.stack.default}
    | {aten.contiguous.default, aten.repeat.default}
)
"""Operators whose result holds the values of their input, and no others of its own."""

Rows = Callable[[fx.Node, fx.Node], Any]


def _first_dim(user: fx.Node, index: fx.Node) -> Any:
    """embedding(weight[rows, width], indices)."""
    return _sizes(user.args[0])[0] if user.args[1] is index else None


def _named_dim(user: fx.Node, index: fx.Node) -> Any:
    """gather(x, dim, index), and the like: along `dim` of x."""
    return _sizes(user.args[0])[int(str(user.args[1]))] if user.args[2] is index else None


def _indexed_dim(user: fx.Node, index: fx.Node) -> Any:
    """x[indices]: an index along each dimension, or None."""
    indices = user.args[1]
    assert isinstance(indices, Sequence)
    return _sizes(user.args[0])[list(indices).index(index)] if index in indices else None


def _classes(user: fx.Node, index: fx.Node) -> Any:
    """one_hot(x, num_classes), where -1 takes any."""
    count = user.args[1] if len(user.args) > 1 else -1
    return count if isinstance(count, int) and count > 0 else None


_ROWS: dict[Any, Rows] = {
    aten.embedding.default: _first_dim,
    aten.gather.default: _named_dim,
    aten.index_select.default: _named_dim,
    aten.scatter.src: _named_dim,
    aten.scatter.value: _named_dim,
    aten.scatter_add.default: _named_dim,
    aten.index_add.default: _named_dim,
    aten.index_copy.default: _named_dim,
    aten.index.Tensor: _indexed_dim,
    aten.index_put.default: _indexed_dim,
    aten.one_hot.default: _classes,
}
"""Operators that read an argument as indices: the number of rows that it chooses from, None for another argument."""


def example_of(program: Program) -> tuple[Tensor, ...]:
    """The flat inputs that the program was traced with, or synthetic ones where it has none, on its device."""
    if program.example is None:
        return synthesize(program)
    home = program.device
    there = all(tensor.device == home for tensor in program.example)
    return program.example if there else tuple(tensor.to(home) for tensor in program.example)


def synthesize(program: Program, seed: int = 0, sizes: Mapping[str, int] | None = None) -> tuple[Tensor, ...]:
    """Flat inputs that fit the signature, on the program's device; the same seed gives the same ones everywhere.

    Floats are normal with mean 0 and deviation 1. Integers that choose rows (of an embedding, gather, index) are
    uniform over the rows, uint8 over 0..255 (images); other integers are ones, as attention masks are, and booleans
    True. Dynamic dimensions have the sizes given, else small ones from 2 up, unlike each other where they may be.

    Raises SignatureError for a size that the program's dimension may not have.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = _choose(program.signature.dims, sizes or {})
    pairs = zip(program.placeholders, program.signature.inputs, strict=True)
    inputs = tuple(_value(program, node, spec, chosen, generator).to(program.device) for node, spec in pairs)
    program.signature.check(inputs)
    return inputs


def _choose(dims: Mapping[str, Range], sizes: Mapping[str, int]) -> dict[str, int]:
    unknown = sizes.keys() - dims.keys()
    if unknown:
        raise SignatureError(f"there is no dynamic dimension {min(unknown)!r}", expected=", ".join(dims) or "none")
    chosen = {}
    for index, (name, span) in enumerate(dims.items()):
        small = max(2, span.low) + index
        chosen[name] = sizes.get(name, small if span.high is None else min(small, span.high))
    return chosen


def _value(
    program: Program, node: fx.Node, spec: TensorSpec, sizes: Mapping[str, int], generator: torch.Generator
) -> Tensor:
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
    if spec.dtype is torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    if spec.dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=spec.dtype)
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    rows = [program.shapes.evaluate(size, sizes) for size in _rows(node)]
    if rows or spec.dtype is torch.uint8:
        return torch.randint(min(rows, default=256), shape, generator=generator).to(spec.dtype)
    return torch.ones(shape, dtype=spec.dtype)


def _rows(node: fx.Node) -> Iterator[Any]:
    """The number of rows of everything that the values of `node` choose from."""
    seen = {node}
    stack = [node]
    while stack:
        source = stack.pop()
        for user in source.users:
            rows = _ROWS[user.target](user, source) if user.target in _ROWS else None
            if rows is not None:
                yield rows
            elif user.target in _FORWARDS and user not in seen:
                seen.add(user)
                stack.append(user)


def _sizes(argument: Any) -> Sequence[Any]:
    """The sizes of a tensor argument."""
    shape: Sequence[Any] = argument.meta[KEY].shape
    return shape
