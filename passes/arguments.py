"""Reading and writing the arguments of a call by the names that the operator's schema gives them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten
PADS = frozenset({aten.constant_pad_nd.default, aten.pad.default})


@cache
def defaults(target: OpOverload) -> dict[str, Any]:
    """Each argument's default by its name, in order; None where it has none."""
    return {argument.name: argument.default_value for argument in target._schema.arguments}


@cache
def _place(target: OpOverload, name: str) -> int:
    return list(defaults(target)).index(name)


def argument(node: fx.Node, name: str) -> Any:
    """The argument of that name, its default where it was left out. Raises ValueError where there is none."""
    target: Any = node.target
    index = _place(target, name)
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, defaults(target)[name])


def spatial(node: fx.Node, name: str, rank: int) -> list[int]:
    """An argument that gives one number for each of `rank` spatial dimensions, or one for all; empty where unset."""
    value = argument(node, name)
    values = [value] if isinstance(value, int) else list(value or ())
    return values * rank if len(values) == 1 else values


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Replace the argument of that name; those left out before it are written with their defaults."""
    target: Any = node.target
    index = _place(target, name)
    if name in node.kwargs:
        node.update_kwarg(name, value)
        return
    if index >= len(node.args):
        names = list(defaults(target))[len(node.args) : index + 1]
        node.args = (*node.args, *(argument(node, left_out) for left_out in names))
    node.update_arg(index, value)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument by name, in the order of the schema."""
    return {name: argument(node, name) for name in defaults(node.target)}


def padded_with(node: fx.Node) -> float | None:
    """The number that a pad adds; None where it adds values of its input, and for any other call."""
    if node.target not in PADS or (node.target is aten.pad.default and argument(node, "mode") != "constant"):
        return None
    value = argument(node, "value") or 0
    return value if isinstance(value, int | float) else None
