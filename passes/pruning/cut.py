"""The cut: slice parameters and buffers, rewrite the sizes that calls were given, refresh every shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from tersor.ir.errors import PassError, VerificationError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY, propagate

from ..arguments import argument, set_argument
from .analysis import Dimensions
from .axes import Axis, Cutting
from .flow import SizeOf


def cut(program: Program, found: Dimensions, keep: Mapping[Axis, Tensor]) -> None:
    """Remove indices from a program, in place; tensors are replaced and not written into.

    found: the dimensions of this very program. keep: a leaf to which of its indices stay, bool[size].

    Raises PassError where an axis would become empty, or holds fewer than an operator needs.
    """
    cutting = Cutting(keep)
    _refuse(found, cutting)
    for edit in found.edits:
        if isinstance(edit, SizeOf):
            _resize(edit, cutting)
        elif any(cutting.touches(axis) for axis in edit.axes):
            edit.action(program, edit.node, cutting.size)
    program.set_tensors(
        {
            name: sliced(program.tensor(name), axes, cutting)
            for name, axes in found.tensors.items()
            if any(map(cutting.touches, axes))
        }
    )
    program.sparsity = {name: entry for name, entry in program.sparsity.items() if not _touched(found, cutting, name)}
    _shrink_inputs(program, found, cutting)
    program.changed()
    try:
        propagate(program, [node for node in program.graph.nodes if _changes(found, cutting, node)])
    except VerificationError as error:
        error.within("after the cut, which is a bug of tersor")
        raise


def sliced(tensor: Tensor, axes: tuple[Axis, ...], cutting: Cutting) -> Tensor:
    """What is left of a tensor with these axes."""
    for dim, axis in enumerate(axes):
        if cutting.touches(axis):
            tensor = tensor.detach().index_select(dim, cutting.mask(axis).nonzero().flatten().to(tensor.device))
    return tensor


def _changes(found: Dimensions, cutting: Cutting, node: fx.Node) -> bool:
    """Whether a node's type has to be found again: it is new, or one of its sizes shrinks."""
    if node not in found.values or node.op == "output":
        return node not in found.values
    values = found.values[node] or ()
    each = values if values and not isinstance(values[0], Axis) else (values,)
    return any(cutting.touches(axis) for axes in each for axis in axes)


def _shrink_inputs(program: Program, found: Dimensions, cutting: Cutting) -> None:
    """Where inputs may shrink, the signature and the example follow."""
    axes = [found.values[node] for node in program.placeholders]
    if not any(cutting.touches(axis) for each in axes for axis in each):
        return
    specs = tuple(
        dataclasses.replace(
            spec,
            shape=tuple(
                cutting.size(axis) if cutting.touches(axis) else size
                for size, axis in zip(spec.shape, each, strict=True)
            ),
        )
        for spec, each in zip(program.signature.inputs, axes, strict=True)
    )
    program.signature = dataclasses.replace(program.signature, inputs=specs)
    for node, spec in zip(program.placeholders, specs, strict=True):
        node.meta[KEY] = program.shapes.input(spec)
    if program.example is not None:
        pairs = zip(program.example, axes, strict=True)
        program.example = tuple(sliced(tensor, each, cutting) for tensor, each in pairs)


def _touched(found: Dimensions, cutting: Cutting, name: str) -> bool:
    return name in found.tensors and any(map(cutting.touches, found.tensors[name]))


def _refuse(found: Dimensions, cutting: Cutting) -> None:
    for leaf in cutting.keep:
        if leaf.pins:
            raise PassError(
                f"{leaf.name} cannot be cut", expected="an axis that is not pinned", found=str(leaf.pins[0])
            )
        if cutting.size(leaf) == 0:
            raise PassError(f"all {leaf.size} indices of {leaf.name} would go", hint="keep at least one")
    for axis, least, node in found.minima:
        if cutting.size(axis) < least:
            raise PassError(
                f"an axis of {axis.size} would be cut to {cutting.size(axis)}",
                node=node,
                expected=f"at least {least}, which this operator picks",
            )


def _resize(edit: SizeOf, cutting: Cutting) -> None:
    """Write the new size where a number stands; one that is computed in the graph is left to be found (-1)."""
    if not cutting.touches(edit.axis):
        return
    size, node = cutting.size(edit.axis), edit.node
    value: Any = argument(node, edit.argument)
    if edit.index is None:
        set_argument(node, edit.argument, size)
    elif value[edit.index] != -1:
        new = size if isinstance(value[edit.index], int) else -1
        set_argument(node, edit.argument, [*value[: edit.index], new, *value[edit.index + 1 :]])
