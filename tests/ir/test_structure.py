"""Nested values come apart and together again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tersor.ir.errors import SignatureError
from tersor.ir.structure import Record, Structure, flatten


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Box:
    inside: Tensor
    label: str = "box"


A, B, C = torch.zeros(1), torch.ones(2), torch.full((3,), 2.0)

VALUES: dict[str, tuple[Any, list[Tensor], list[str]]] = {
    "tensor": (A, [A], [""]),
    "tuple": ((A, B), [A, B], ["0", "1"]),
    "list": ([A, (B, C)], [A, B, C], ["0", "1.0", "1.1"]),
    "dict": ({"a": A, "b": [B]}, [A, B], ["a", "b.0"]),
    "constants": ((None, True, 1, 2.5, "text", A), [A], ["5"]),
    "empty": (((), [], {}), [], []),
    "namedtuple": (Pair(A, B), [A, B], ["0", "1"]),
    "dataclass": (Box(A), [A], ["inside"]),
    "deep": ({"x": {"y": [{"z": (A,)}]}}, [A], ["x.y.0.z.0"]),
}


@pytest.mark.parametrize("name", VALUES)
def test_leaves_paths_and_the_value_again(name: str) -> None:
    value, leaves, paths = VALUES[name]
    found, structure = flatten(value)
    assert [id(leaf) for leaf in found] == [id(leaf) for leaf in leaves]
    assert structure.leaves == len(leaves)
    assert list(structure.paths()) == paths
    again = structure.unflatten(iter(found))
    assert type(again) is type(value)
    assert str(again) == str(value)


@pytest.mark.parametrize("name", VALUES)
def test_plain_data_and_back(name: str) -> None:
    _, structure = flatten(VALUES[name][0])
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 0.1, 3, True, None, "nan"])
def test_constants_keep_type_and_value(value: Any) -> None:
    _, structure = flatten(value)
    constant = Structure.from_json(json.loads(json.dumps(structure.to_json()))).constant
    assert type(constant) is type(value)
    assert repr(constant) == repr(value)


def test_a_class_becomes_a_record_when_it_comes_from_a_file() -> None:
    for value in (Box(A), OrderedDict(inside=A, label="box")):
        loaded = Structure.from_json(flatten(value)[1].to_json()).unflatten(iter([A]))
        assert isinstance(loaded, Record)
        assert loaded.inside is loaded["inside"] is loaded[0] is A
        assert loaded.label == "box"
        with pytest.raises(AttributeError, match="no field 'outside'; there are inside, label"):
            _ = loaded.outside


def test_a_record_is_flattened_as_one() -> None:
    _, structure = flatten(Record(a=A))
    assert (structure.kind, structure.keys) == ("record", ("a",))
    assert flatten(structure.unflatten(iter([A])))[1] == structure


def test_what_cannot_be_an_input() -> None:
    with pytest.raises(SignatureError, match=r"x\.1\.a is a set, which is not a tensor"):
        flatten((A, {"a": {1, 2}}), "x")


BROKEN: list[dict[str, Any]] = [
    {},
    {"kind": "set"},
    {"kind": "dict", "keys": ["a"]},
    {"kind": "record", "keys": ["a", "b"], "children": [{"kind": "leaf"}]},
    {"kind": "constant", "constant": [1]},
    {"kind": "constant", "constant": "x", "float": True},
    {"kind": "tuple", "children": [1]},
]


@pytest.mark.parametrize("data", BROKEN)
def test_data_of_another_shape(data: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Structure.from_json(data)
