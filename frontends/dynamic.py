"""The inputs of one trace by name, and which of their dimensions are dynamic."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._sympy.value_ranges import ValueRanges

from tersor.ir.errors import SignatureError, TraceError
from tersor.ir.signature import Dim as Size
from tersor.ir.signature import Range
from tersor.ir.structure import flatten

Dynamic = Mapping[str, Mapping[int, str]]
"""Input name -> dimension -> the dimension's own name. Dimensions of one name have one size."""


class DynamicDims:
    """The example inputs, flat and by name, with the names of their dynamic dimensions.

    example: the input tensors in order; structure: how `(args, kwargs)` nests them; names: a dotted path for each.

    Raises TraceError where an input is no tensor, constant or container, or `dynamic` does not fit the inputs.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic) -> None:
        self.parameters = _parameter_names(model, len(args))
        positional = dict(zip(self.parameters, args, strict=False))
        twice = sorted(positional.keys() & kwargs.keys())
        if twice:
            raise TraceError(f"input {twice[0]!r} is given by position and by name", hint="give it once")
        try:
            tensors, by_name = flatten({**positional, **kwargs})
            _, self.structure = flatten((args, dict(kwargs)))
        except SignatureError as error:
            raise TraceError(f"input {error.what}", expected=error.expected, found=error.found) from None
        self.example = tuple(t.clone() if t.is_inference() else t.detach() for t in tensors)
        self.names = list(by_name.paths())
        self.dynamic = {name: _by_place(name, dims) for name, dims in dynamic.items()}
        self._check(dict(zip(self.names, self.example, strict=True)))

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        sizes: dict[str, int] = {}
        for name, dims in self.dynamic.items():
            if name not in tensors:
                raise TraceError(
                    f"dynamic= names {name!r}, which is not an input", expected=f"one of {', '.join(tensors)}"
                )
            for place, label in dims.items():
                if not -1 < place < tensors[name].dim():
                    expected = f"0 to {tensors[name].dim() - 1}" if tensors[name].dim() else "an input with dimensions"
                    raise TraceError(f"input {name!r} has no dimension {place}", expected=expected, found=place)
                if not label.isidentifier():
                    raise TraceError("a dimension's name must be an identifier", found=repr(label))
                size = tensors[name].shape[place]
                if sizes.setdefault(label, size) != size:
                    raise TraceError(
                        f"dimension {place} of {name!r} is named {label!r} as another that has a different size",
                        expected=sizes[label],
                        found=size,
                        hint="dimensions of one name have one size: name this one differently",
                    )

    def shape(self, name: str, tensor: Tensor) -> tuple[Size, ...]:
        """The sizes of an input, dynamic ones as names."""
        dims = self.dynamic.get(name, {})
        return tuple(dims.get(place, size) for place, size in enumerate(tensor.shape))

    def for_export(self) -> Any:
        """The `dynamic_shapes` argument of torch.export for a model whose forward takes `*tensors`.

        AUTO lets torch fix a dimension without an error of its own: `ranges` tells of it in the user's words.
        """
        specs = tuple(dict.fromkeys(self.dynamic.get(name, {}), Dim.AUTO) for name in self.names)
        return (specs,) if self.dynamic else None

    def example_for_export(self) -> tuple[Tensor, ...]:
        """The example with dynamic dimensions of size 1 doubled: torch.export takes a size of 1 for a constant."""
        return tuple(
            _doubled(tensor, self.dynamic.get(name, {})) for name, tensor in zip(self.names, self.example, strict=True)
        )

    def ranges(self, shapes: Sequence[torch.Size], bounds: Mapping[sympy.Symbol, ValueRanges[Any]]) -> dict[str, Range]:
        """The sizes that each named dimension may take, as far as the trace knows.

        shapes: those of the inputs, as traced; bounds: of the symbols in them. Raises TraceError where the model fixed
        a dimension that should be dynamic, or needs two of different names to be equal.
        """
        ranges: dict[str, Range] = {}
        owners: dict[sympy.Expr, str] = {}
        for name, shape in zip(self.names, shapes, strict=True):
            for place, label in self.dynamic.get(name, {}).items():
                size = _expression(shape[place])
                if size.is_Integer:
                    raise TraceError(
                        f"dimension {place} of {name!r} cannot be dynamic: the model works for size {size} only",
                        hint="write the model without that size (x.shape[0] instead of a number), or leave it fixed",
                    )
                owner = owners.setdefault(size, label)
                if owner != label:
                    raise TraceError(
                        f"dimensions {owner!r} and {label!r} cannot differ: the model needs them to be equal",
                        hint=f"give dimension {place} of {name!r} the name {owner!r} as well",
                    )
                ranges[label] = _narrowed(ranges.get(label), _range(bounds.get(size)))
        return ranges


def _expression(size: int | torch.SymInt) -> sympy.Expr:
    """A traced size; one that the model fixed is a number, even where it still goes by a symbol."""
    return sympy.Integer(size) if isinstance(size, int) else size.node.expr


def _doubled(tensor: Tensor, places: Mapping[int, str]) -> Tensor:
    for place in places:
        if tensor.shape[place] == 1:
            tensor = torch.cat([tensor, tensor], dim=place)
    return tensor


def _range(bounds: ValueRanges[Any] | None) -> Range:
    """torch's ranges start at 2, since it reasons about 0 and 1 apart; a size of 1 runs through the same graph."""
    if bounds is None:
        return Range()
    low = int(bounds.lower) if bounds.lower.is_Integer else 1
    high = int(bounds.upper) if bounds.upper.is_Integer and int(bounds.upper) < 2**31 else None
    return Range(1 if low <= 2 else low, high)


def _narrowed(old: Range | None, new: Range) -> Range:
    if old is None:
        return new
    highs = [high for high in (old.high, new.high) if high is not None]
    return Range(max(old.low, new.low), min(highs) if highs else None)


def _parameter_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The names of the positional parameters of the model's forward; at least `count` of them."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), "args")
    return tuple(names + [f"{rest}_{i}" for i in range(len(names), count)])


def _by_place(name: str, dims: object) -> dict[int, str]:
    if not isinstance(dims, Mapping) or not all(isinstance(label, str) for label in dims.values()):
        expected = f"dimensions with a name for each, as {{{name!r}: {{0: 'batch'}}}}"
        raise TraceError(f"dynamic= does not name the dimensions of {name!r}", expected=expected, found=repr(dims))
    return dict(dims)
