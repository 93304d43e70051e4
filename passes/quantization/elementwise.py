"""Operators that take each element by itself."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from tersor.ir.program import Program
from tersor.ir.shapes import KEY, describe

aten = torch.ops.aten

_UNTAGGED = frozenset({aten.hardswish.default, aten.log_sigmoid.default, aten.prelu.default})
"""Element-wise operators that torch does not tag as such; prelu is one where its weight has one element."""


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of the result depends on the elements of the inputs at that place alone."""
    target = node.target
    if not isinstance(target, OpOverload) or not isinstance(node.meta.get(KEY), Tensor):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return torch.Tag.pointwise in target.tags or target in _UNTAGGED


def is_unary(program: Program, node: fx.Node) -> bool:
    """Whether a node is a function of the elements of one tensor; its other inputs are constants of one element."""
    if not is_pointwise(node):
        return False
    constants = {source: program.constant(source) for source in node.all_input_nodes}
    sources = [source for source, constant in constants.items() if constant is None]
    if len(sources) != 1 or any(constant is not None and constant.numel() != 1 for constant in constants.values()):
        return False
    types = [value.meta.get(KEY) for value in (sources[0], node)]
    return isinstance(types[0], Tensor) and describe(program, types[0]) == describe(program, types[1])
