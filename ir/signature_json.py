"""A signature as plain data and back, for files that must be readable without running code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .signature import Dim, Range, Signature, TensorSpec
from .structure import Structure

_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def signature_to_json(signature: Signature) -> dict[str, Any]:
    """Plain data that JSON holds without loss."""
    return {
        "inputs": [_spec_to_json(spec) for spec in signature.inputs],
        "args": signature.args.to_json(),
        "kwargs": signature.kwargs.to_json(),
        "outputs": signature.outputs.to_json(),
        "parameters": list(signature.parameters),
        "dims": {name: [span.low, span.high] for name, span in signature.dims.items()},
    }


def signature_from_json(data: Mapping[str, Any]) -> Signature:
    """The inverse of `signature_to_json`; classes of outputs degrade to records.

    Raises KeyError, TypeError or ValueError on data of another shape.
    """
    signature = Signature(
        inputs=tuple(_spec_from_json(spec) for spec in data["inputs"]),
        args=Structure.from_json(data["args"]),
        kwargs=Structure.from_json(data["kwargs"]),
        outputs=Structure.from_json(data["outputs"]),
        parameters=tuple(str(name) for name in data["parameters"]),
        dims={str(name): _range(span) for name, span in data["dims"].items()},
    )
    leaves = signature.args.leaves + signature.kwargs.leaves
    if leaves != len(signature.inputs):
        raise ValueError(f"{len(signature.inputs)} inputs for a nesting of {leaves} tensors")
    unknown = {dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)} - signature.dims.keys()
    if unknown:
        raise ValueError(f"dimensions without a range: {', '.join(sorted(unknown))}")
    return signature


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape)}


def _spec_from_json(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(str(data["name"]), _DTYPES[data["dtype"]], tuple(_dim(dim) for dim in data["shape"]))


def _dim(value: object) -> Dim:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"a size cannot be {value!r}")


def _range(value: Any) -> Range:
    low, high = value
    if not isinstance(low, int) or not isinstance(high, int | None):
        raise ValueError(f"a range cannot be {value!r}")
    return Range(low, high)
