"""What a program takes and gives: names, shapes, dtypes, dynamic dimensions, nesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, SignatureError
from .structure import Structure, flatten

Dim = int | str
"""A size: a number, or the name of a dynamic dimension."""


@dataclass(frozen=True)
class Range:
    """The sizes, both inclusive, that a dynamic dimension may take; `high` None means without bound."""

    low: int = 1
    high: int | None = None

    def __str__(self) -> str:
        return f"{self.low}..{'' if self.high is None else self.high}"

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and size >= self.low and (self.high is None or size <= self.high)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a signature: a dotted name, dtype, and sizes of which some may be names."""

    name: str
    dtype: torch.dtype
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """Inputs (positional and keyword), outputs, and the ranges of the dynamic dimensions.

    `args` nests the positional inputs, `kwargs` the keyword inputs; `parameters` are the names of the positional ones
    in the model's own `forward`, so that a call may give any of them by name. `dims` has the range of each dynamic
    dimension by its name.
    """

    inputs: tuple[TensorSpec, ...]
    args: Structure
    kwargs: Structure
    outputs: Structure
    parameters: tuple[str, ...] = ()
    dims: Mapping[str, Range] = field(default_factory=dict)

    @property
    def output_names(self) -> tuple[str, ...]:
        """A name for each output tensor: its path in the model's own output, `output` where that has no name."""
        return tuple(
            path if path and not path[0].isdigit() else f"output_{path}" if path else "output"
            for path in self.outputs.paths()
        )

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The input tensors in order, checked against the signature.

        Raises SignatureError naming the first input that does not fit, with the expected and found shape.
        """
        args, kwargs = self._bind(args, kwargs)
        given_args, args_structure = flatten(tuple(args))
        given_kwargs, kwargs_structure = flatten(kwargs)
        if args_structure != self.args or kwargs_structure != self.kwargs:
            raise SignatureError(
                "the inputs are not nested as they were when the model was traced",
                expected=self.describe(),
                found=_describe(args_structure, kwargs_structure, [*given_args, *given_kwargs]),
                hint="call with the same arguments, the same constants among them, as the example",
            )
        tensors = [*given_args, *given_kwargs]
        self.check(tensors)
        return tensors

    def check(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """Check flat inputs and return the size of each dynamic dimension. Raises SignatureError."""
        sizes: dict[str, int] = {}
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            fits = tensor.dim() == len(spec.shape) and tensor.dtype == spec.dtype
            fits = fits and all(
                size == dim if isinstance(dim, int) else sizes.setdefault(dim, size) == size and size in self.dims[dim]
                for dim, size in zip(spec.shape, tensor.shape, strict=True)
            )
            if not fits:
                raise self._mismatch(spec, tensor, sizes)
        return sizes

    def describe(self) -> str:
        """The inputs on one line."""
        dims = "".join(f", {name} in {span}" for name, span in self.dims.items())
        return f"({', '.join(map(str, self.inputs))}{dims})"

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Move positional inputs to where the trace had them, and keyword inputs likewise."""
        bound, named = list(args), dict(kwargs)
        for name in self.parameters[len(bound) : len(self.args.children)]:
            if name in named:
                bound.append(named.pop(name))
        extra = self.parameters[len(self.args.children) : len(bound)]
        for name, value in zip(extra, bound[len(self.args.children) :], strict=False):
            if name in self.kwargs.keys and name not in named:
                named[name] = value
        if extra and set(extra) <= set(named):
            bound = bound[: len(self.args.children)]
        for key, child in zip(self.kwargs.keys, self.kwargs.children, strict=True):
            if child.kind == "constant":
                named.setdefault(key, child.constant)
        ordered = {key: named.pop(key) for key in self.kwargs.keys if key in named}
        return bound, ordered | named

    def _mismatch(self, spec: TensorSpec, tensor: Tensor, sizes: Mapping[str, int]) -> InputError:
        found = TensorSpec(spec.name, tensor.dtype, tuple(tensor.shape))
        dynamic = {dim: sizes.get(dim) for dim in spec.shape if isinstance(dim, str)}
        ranges = "; ".join(f"{dim} in {self.dims[dim]}, {size} here" for dim, size in dynamic.items())
        return InputError(
            f"input {spec.name!r} does not fit the program",
            expected=f"{spec}{f' ({ranges})' if ranges else ''}",
            found=found,
            hint=_how_to_fit(spec, tensor),
        )


def _how_to_fit(spec: TensorSpec, tensor: Tensor) -> str:
    """What to do about a tensor that an input does not take."""
    if tensor.dtype is not spec.dtype:
        return f"cast it: {spec.name}.to({spec.dtype})"
    if len(spec.shape) == tensor.dim() + 1:
        return f"an input has all dimensions, the first too: {spec.name}.unsqueeze(0)"
    other = [
        at
        for at, (dim, size) in enumerate(zip(spec.shape, tensor.shape, strict=False))
        if isinstance(dim, int) and dim != size
    ]
    if len(spec.shape) != tensor.dim() or not other:
        return "give it the shape that is expected"
    if other == [0]:
        return (
            f"trace with dynamic={{{spec.name!r}: {{0: 'batch'}}}}, or give batches of {spec.shape[0]}, as a "
            "DataLoader does with drop_last=True"
        )
    sizes = ", ".join(f"{at}: 'size_{at}'" for at in other)
    return f"trace with dynamic={{{spec.name!r}: {{{sizes}}}}} where these sizes change from call to call"


def _describe(args: Structure, kwargs: Structure, tensors: Sequence[Tensor]) -> str:
    names = [*args.paths(), *kwargs.paths()]
    specs = [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in zip(names, tensors, strict=True)]
    return f"({', '.join(map(str, specs))})"
