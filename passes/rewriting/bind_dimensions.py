"""Dynamic dimensions bound to numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..base import Pass, PassResult


@dataclass(frozen=True)
class BindDimensions(Pass):
    """Give dynamic dimensions their sizes, for targets that plan memory ahead.

        input %x : float32[batch, 3, 32, 32]                input %x : float32[1, 3, 32, 32]
        %sym_size : batch = sym_size(%x, 0)            ->   %reshape : float32[1, 3072] = reshape(%x, [1, 3072])
        %reshape = reshape(%x, [%sym_size, 3072])

    sizes: by name; a dimension that is not named gets the least size that it may have.

    Raises PassError for a name that the program does not have, or a size that is out of its range.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)

    def run(self, program: Program) -> PassResult:
        """Bind every dimension."""
        dims = program.signature.dims
        for name, size in self.sizes.items():
            if name not in dims:
                raise PassError(
                    f"there is no dynamic dimension {name!r}", expected=", ".join(dims) or "none", found=name
                )
            if size not in dims[name]:
                raise PassError(f"dimension {name!r} cannot be {size}", expected=str(dims[name]), found=size)
        if not dims:
            return PassResult(program, False)
        sizes = {name: self.sizes.get(name, span.low) for name, span in dims.items()}
        _bind_numbers(program, sizes)
        notes = (", ".join(f"{name} = {size}" for name, size in sizes.items()),)
        return PassResult(_rebuilt(program, sizes), True, notes)

    def options(self) -> dict[str, str]:
        """The sizes as text."""
        return {"sizes": ", ".join(f"{name}={size}" for name, size in self.sizes.items())}


def _bind_numbers(program: Program, sizes: Mapping[str, int]) -> None:
    """Put numbers where nodes computed sizes."""
    numbers = {
        node: program.shapes.evaluate(node.meta[KEY], sizes)
        for node in program.graph.nodes
        if isinstance(node.meta.get(KEY), torch.SymInt)
    }

    def number(argument: fx.Node) -> Any:
        return numbers.get(argument, argument)

    for node in program.graph.nodes:
        if any(source in numbers for source in node.all_input_nodes) and node not in numbers:
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), number)
    for node in reversed(list(numbers)):
        program.graph.erase_node(node)


def _rebuilt(program: Program, sizes: Mapping[str, int]) -> Program:
    inputs = tuple(
        replace(spec, shape=tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape))
        for spec in program.signature.inputs
    )
    signature = replace(program.signature, inputs=inputs, dims={})
    fits = program.example is not None and all(
        tuple(tensor.shape) == spec.shape for tensor, spec in zip(program.example, inputs, strict=True)
    )
    return Program.build(
        program.graph,
        program.tensors(),
        signature,
        name=program.name,
        stage=program.stage,
        sparsity=program.sparsity,
        history=program.history,
        example=program.example if fits else None,
    )
