"""Group norm as exporters write it: the groups as channels, normalized one by one, then scaled and shifted.

%reshape = reshape(%x, [2, 4, -1])
%instance_norm = instance_norm(%reshape, @ones, @zeros, ...)
%reshape_1 = reshape(%instance_norm, [2, 8, 9, 9])          %group_norm = group_norm(%x, 4, @weight, @bias, 1e-05)
%mul = mul(%reshape_1, @weight)
%add = add(%mul, @bias)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.shapes import KEY

from ..arguments import argument
from .rules import Context, Rule

aten = torch.ops.aten


def groups_normalized(context: Context, node: fx.Node) -> fx.Node | None:
    """Groups made channels, normalized with neither scale nor shift, and made what they were."""
    norm: Any = node.args[0]
    if norm.target is not aten.instance_norm.default or len(norm.users) > 1:
        return None
    grouped = argument(norm, "input")
    source = grouped.args[0] if grouped.target is aten.reshape.default else None
    if source is None or not argument(norm, "use_input_stats") or not context.same_type(source, node):
        return None
    sizes, groups = context.shape(source), context.shape(grouped)
    known = isinstance(sizes[1], int) and isinstance(groups[1], int) if len(sizes) > 2 else False
    if not known or len(groups) != 3 or groups[0] != sizes[0] or int(sizes[1]) % int(groups[1]):
        return None
    if not _all_are(context, argument(norm, "weight"), 1) or not _all_are(context, argument(norm, "bias"), 0):
        return None
    eps = argument(norm, "eps")
    return context.instead(node, aten.group_norm.default, source, groups[1], None, None, eps, False)


def _all_are(context: Context, node: fx.Node | None, number: float) -> bool:
    """Whether a stored tensor holds this number alone; one that is not there does."""
    if node is None:
        return True
    tensor = context.program.tensor(str(node.target)) if node.op == "get_attr" else context.tensor(node)
    return isinstance(tensor, Tensor) and bool((tensor == number).all())


def scale_into_group_norm(context: Context, node: fx.Node) -> fx.Node | None:
    """A group norm without weights, times a number for each channel."""
    return _joined(context, node, "weight")


def shift_into_group_norm(context: Context, node: fx.Node) -> fx.Node | None:
    """A group norm without bias, plus a number for each channel."""
    return _joined(context, node, "bias") if argument(node, "alpha") == 1 else None


def _joined(context: Context, node: fx.Node, name: str) -> fx.Node | None:
    left, right = node.args[:2]
    for norm, tensor in ((left, right), (right, left)):
        if not isinstance(norm, fx.Node) or not isinstance(tensor, fx.Node):
            return None
        if norm.target is not aten.group_norm.default or len(norm.users) > 1 or argument(norm, "bias") is not None:
            continue
        if name == "weight" and argument(norm, "weight") is not None:
            continue
        vector = _by_channel(context, node, norm, tensor)
        if vector is not None:
            x, groups, weight, bias, *rest = norm.args
            given = (vector, bias) if name == "weight" else (weight, vector)
            return context.instead(node, aten.group_norm.default, x, groups, *given, *rest)
    return None


def _by_channel(context: Context, node: fx.Node, norm: fx.Node, tensor: fx.Node) -> fx.Node | None:
    """A stored tensor [channels, 1, 1...] as the vector [channels]; None for any other."""
    sizes, name = context.shape(norm), str(tensor.target)
    wanted = (sizes[1], *[1] * (len(sizes) - 2))
    shape = context.shape(tensor)
    fits = shape == wanted or (len(shape) == len(sizes) and shape == (1, *wanted))
    if tensor.op != "get_attr" or not fits or tensor.meta[KEY].dtype is not norm.meta[KEY].dtype:
        return None
    stored = context.program.tensor(name)
    if context.reads(name) > 1 or len(tensor.users) > 1 or name in context.program.sparsity:
        return None
    vector = stored.detach().flatten().contiguous()
    if isinstance(stored, nn.Parameter):
        vector = nn.Parameter(vector, stored.requires_grad)
    with context.program.graph.inserting_before(node):
        return context.program.attribute(context.program.add_tensor(f"{name}_by_channel", vector))


TABLE: tuple[tuple[str, Rule, tuple[Any, ...]], ...] = (
    ("group_norm recovered", groups_normalized, (aten.reshape.default,)),
    ("scales joined to norms", scale_into_group_norm, (aten.mul.Tensor,)),
    ("shifts joined to norms", shift_into_group_norm, (aten.add.Tensor,)),
)
