"""A signature goes through JSON and comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tersor.ir.signature import Range, Signature, TensorSpec
from tersor.ir.signature_json import signature_from_json, signature_to_json
from tersor.ir.structure import flatten


def example() -> Signature:
    x, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    specs = (TensorSpec("x", x.dtype, ("batch", 3)), TensorSpec("more.y", y.dtype, ("batch",)))
    structures = [flatten(value)[1] for value in ((x,), {"more": {"y": y, "eps": 1e-5, "flag": None}}, {"out": [x]})]
    dims = {"batch": Range(1, None), "length": Range(2, 64)}
    return Signature(specs, structures[0], structures[1], structures[2], ("x", "more"), dims)


def test_nothing_is_lost() -> None:
    signature = example()
    assert signature_from_json(json.loads(json.dumps(signature_to_json(signature)))) == signature


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no inputs": lambda data: data.pop("inputs"),
    "too few inputs": lambda data: data["inputs"].pop(),
    "unknown dtype": lambda data: data["inputs"][0].update(dtype="float33"),
    "negative size": lambda data: data["inputs"][0].update(shape=["batch", -1]),
    "size that is true": lambda data: data["inputs"][0].update(shape=["batch", True]),
    "dimension without a range": lambda data: data["dims"].pop("batch"),
    "range of text": lambda data: data["dims"].update(batch=["1", None]),
    "range of three": lambda data: data["dims"].update(batch=[1, 2, 3]),
    "unknown structure": lambda data: data["args"].update(kind="module"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_data_of_another_shape_is_refused(name: str) -> None:
    data = json.loads(json.dumps(signature_to_json(example())))
    BROKEN[name](data)
    with pytest.raises((KeyError, TypeError, ValueError)):
        signature_from_json(data)
