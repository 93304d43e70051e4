"""Dynamic dimensions, from the names that a user gives to what torch.export takes and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from tersor.ir.errors import TraceError
from tersor.ir.signature import Dim as Size
from tersor.ir.signature import Range
from tersor.ir.structure import flatten

Dynamic = Mapping[str, Mapping[int, str]]
"""Input name -> dimension -> the dimension's own name. Dimensions of one name have one size."""


class DynamicDims:
    """The inputs of one trace by name, and which of their dimensions are dynamic."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic) -> None:
        self.parameters = _parameter_names(model, len(args))
        positional = dict(zip(self.parameters, args, strict=False))
        self._nested = {**positional, **kwargs}
        tensors, structure = flatten(self._nested)
        self.names = list(structure.paths())
        self.dynamic = {name: dict(dims) for name, dims in dynamic.items()}
        self._check(dict(zip(self.names, tensors, strict=True)))

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        for name, dims in self.dynamic.items():
            if name not in tensors:
                raise TraceError(
                    f"dynamic= names {name!r}, which is not an input",
                    expected=f"one of {', '.join(tensors)}",
                    found=name,
                )
            for dim, label in dims.items():
                if not -1 < dim < tensors[name].dim():
                    raise TraceError(
                        f"input {name!r} has no dimension {dim}",
                        expected=f"0 to {tensors[name].dim() - 1}",
                        found=dim,
                    )
                if not label.isidentifier():
                    raise TraceError("a dimension's name must be an identifier", found=repr(label))

    def shape(self, name: str, tensor: Tensor) -> tuple[Size, ...]:
        """The sizes of an input, dynamic ones as names."""
        dims = self.dynamic.get(name, {})
        return tuple(dims.get(place, size) for place, size in enumerate(tensor.shape))

    def for_export(self, kwargs: Mapping[str, Any]) -> Any:
        """The `dynamic_shapes` argument of torch.export: nested as the inputs, None for what is fixed."""
        if not self.dynamic:
            return None
        return {key: self._spec(key, value) for key, value in (self._nested | dict(kwargs)).items()}

    def _spec(self, path: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return dict.fromkeys(self.dynamic.get(path, {}), Dim.DYNAMIC)
        if isinstance(value, Mapping):
            return {key: self._spec(f"{path}.{key}", child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._spec(f"{path}.{i}", child) for i, child in enumerate(value))
        return None

    def enlarged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example with dynamic dimensions of size 1 doubled: torch.export takes a size of 1 for a constant."""
        names = iter(self.names)

        def grow(value: Any) -> Any:
            if isinstance(value, Tensor):
                name = next(names, "")
                for place in self.dynamic.get(name, {}):
                    if value.shape[place] == 1:
                        value = torch.cat([value, value], dim=place)
                return value
            if isinstance(value, dict):
                return {key: grow(child) for key, child in value.items()}
            if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
                return type(value)(grow(child) for child in value)
            return value

        return grow(args), grow(kwargs)

    def ranges(self, exported: ExportedProgram) -> dict[str, Range]:
        """The sizes that each named dimension may take, as far as the trace knows.

        Raises TraceError where the model fixed a dimension that should be dynamic.
        """
        ranges: dict[str, Range] = {}
        specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        nodes = [n for n in exported.graph.find_nodes(op="placeholder") if _is_tensor_input(n, specs)]
        for name, node in zip(self.names, nodes, strict=True):
            for place, label in self.dynamic.get(name, {}).items():
                size = node.meta["val"].shape[place]
                if isinstance(size, int):
                    raise TraceError(
                        f"dimension {place} of {name!r} cannot be dynamic: the model works for size {size} only",
                        hint="write the model without that size (x.shape[0] instead of a number), or leave it fixed",
                    )
                ranges[label] = _narrowed(ranges.get(label), _range(exported, size))
        return ranges


def _is_tensor_input(node: fx.Node, specs: Mapping[str, Any]) -> bool:
    return specs[node.name].kind is InputKind.USER_INPUT and isinstance(node.meta.get("val"), Tensor)


def _range(exported: ExportedProgram, size: torch.SymInt) -> Range:
    """torch's ranges start at 2, since it reasons about 0 and 1 apart; a size of 1 runs through the same graph."""
    bounds = exported.range_constraints.get(size.node.expr)
    if bounds is None:
        return Range()
    low = int(bounds.lower) if bounds.lower.is_Integer else 1  # type: ignore[union-attr]  # sympy's numbers
    upper = bounds.upper
    high = int(upper) if upper.is_Integer and int(upper) < 2**31 else None  # type: ignore[union-attr]
    return Range(1 if low <= 2 else low, high)


def _narrowed(old: Range | None, new: Range) -> Range:
    if old is None:
        return new
    highs = [high for high in (old.high, new.high) if high is not None]
    return Range(max(old.low, new.low), min(highs) if highs else None)


def _parameter_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The names of the positional parameters of the model's forward; at least `count` of them."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return tuple(names + [f"args_{i}" for i in range(len(names), count)])
