"""What moves data, in QONNX: by the operator of ONNX that says so, else by the place of every element."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from tersor.ir import integer_operators as ops
from tersor.ir.program import Program
from tersor.ir.requantize_forms import Ints
from tersor.ir.shapes import KEY

from .build import integer, moved
from .qonnx_nodes import Nodes

aten = torch.ops.aten

_END = np.iinfo(np.int64).max


def move(nodes: Nodes, program: Program, node: fx.Node, name: str, zero_point: int) -> str:
    """The tensor that a node of `build.MOVES` makes of the tensor `name`, whose values are q - zero_point."""
    if node.target is aten.constant_pad_nd.default:
        return _pad(nodes, node, name, zero_point)
    rule = _RULES.get(node.target)
    return (rule and rule(nodes, node, name)) or _by_places(nodes, program, node, name)


def shape_of(node: object) -> tuple[int, ...]:
    """The sizes of a node's value."""
    assert isinstance(node, fx.Node)
    return tuple(int(size) for size in node.meta[KEY].shape)


def source_of(node: fx.Node) -> fx.Node:
    """What a node moves; of a part, what was split."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source_of(source) if node.target is operator.getitem else source


def _by_places(nodes: Nodes, program: Program, node: fx.Node, name: str) -> str:
    before = shape_of(source_of(node))
    places = np.arange(int(np.prod(before))).reshape(before)
    if node.target is operator.getitem:
        split = node.args[0]
        assert isinstance(split, fx.Node)
        order = moved(program, split, places)[integer(node.args[1])]
    else:
        found = moved(program, node, places)
        assert not isinstance(found, list)
        order = found
    same: Ints = np.arange(places.size)
    return nodes.reshape(name, order.shape) if np.array_equal(order.reshape(-1), same) else nodes.gather(name, order)


def _transpose(nodes: Nodes, node: fx.Node, name: str) -> str:
    order = [integer(dim) % len(shape_of(node)) for dim in node.args[1]]  # type: ignore[union-attr]  # a list
    return nodes.emit("Transpose", [name], perm=order)


def _swap(nodes: Nodes, node: fx.Node, name: str) -> str:
    order = list(range(len(shape_of(node))))
    first, second = (integer(dim) for dim in node.args[1:3])
    order[first], order[second] = order[second], order[first]
    return nodes.emit("Transpose", [name], perm=order)


def _slice(nodes: Nodes, node: fx.Node, name: str) -> str:
    given: list[Any] = list(node.args[1:])
    given += [0, None, None, 1][len(given) :]
    dim, start, stop, step = given
    ends = (0 if start is None else integer(start), _END if stop is None else integer(stop))
    return _sliced(nodes, name, integer(dim), *ends, integer(step))


def _sliced(nodes: Nodes, name: str, dim: int, start: int, stop: int, step: int = 1) -> str:
    return nodes.emit("Slice", [name, *(nodes.integers(value) for value in (start, stop, dim, step))])


def _part(nodes: Nodes, node: fx.Node, name: str) -> str | None:
    """A part of what is split is a slice, unless its dimension is gone."""
    split, index = node.args[0], integer(node.args[1])
    assert isinstance(split, fx.Node)
    if split.target is aten.unbind.int:
        return None
    dim = integer(split.args[2]) if len(split.args) > 2 else 0
    sizes = [int(part.shape[dim]) for part in split.meta[KEY]]
    start = sum(sizes[:index])
    return _sliced(nodes, name, dim, start, start + sizes[index])


def _pad(nodes: Nodes, node: fx.Node, name: str, zero_point: int) -> str:
    rank, given = len(shape_of(node)), [integer(value) for value in node.args[1]]  # type: ignore[union-attr]  # a list
    given += [0] * (2 * rank - len(given))
    before, after = given[::2][::-1], given[1::2][::-1]
    fill = nodes.tensor(np.array(integer(node.args[2]) - zero_point, np.float32))
    return nodes.emit("Pad", [name, nodes.integers(*before, *after), fill])


def _resize(nodes: Nodes, node: fx.Node, name: str) -> str | None:
    """By whole factors; else the place of every element says."""
    before, after = shape_of(node.args[0]), shape_of(node)
    scales: Any = node.args[2] if len(node.args) > 2 else None
    factors = [new // old for old, new in zip(before, after, strict=True)]
    wholes = all(old * factor == new for old, new, factor in zip(before, after, factors, strict=True))
    if not wholes or (scales and list(scales) != factors[2:]):
        return None
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return nodes.emit("Resize", [name, "", nodes.tensor(np.array(factors, np.float32))], **options)


_RULES: dict[object, Callable[[Nodes, fx.Node, str], str | None]] = {
    aten.permute.default: _transpose,
    aten.transpose.int: _swap,
    aten.slice.Tensor: _slice,
    operator.getitem: _part,
    ops.INT_RESIZE_NEAREST: _resize,
}
"""Operators of ONNX for what moves data; None where one does not say it."""
