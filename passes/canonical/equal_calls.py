"""Calls that compute the same from the same."""

from __future__ import annotations

import operator
from collections.abc import Container, Hashable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from tersor.ir.program import Program

aten = torch.ops.aten


def merge_equal_calls(program: Program, keep: Container[fx.Node]) -> int:
    """Let the first of several equal calls stand for all; returns how many are gone.

    Calls that read random numbers are never equal. Those in `keep` stay.
    """
    first: dict[Hashable, fx.Node] = {}
    merged = 0
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node in keep or not _repeatable(node.target):
            continue
        kept = first.setdefault((node.target, _key(node.args), _key(node.kwargs)), node)
        if kept is not node:
            program.replace(node, kept)
            merged += 1
    return merged


def _repeatable(target: Any) -> bool:
    if target is operator.getitem:
        return True
    if not isinstance(target, OpOverload) or target.namespace != "aten" or target is aten.batch_norm.default:
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _key(value: Any) -> Hashable:
    """Arguments as a key; numbers with their types, since 1, 1.0 and True are equal to Python."""
    if isinstance(value, fx.Node):
        return ("tensor", value.target) if value.op == "get_attr" else value
    if isinstance(value, list | tuple):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in value.items())
    return type(value), repr(value) if isinstance(value, float) else value
