"""What a call may look like, and what is said where it does not fit."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.ir.errors import SignatureError
from tersor.ir.signature import Range, Signature, TensorSpec
from tersor.ir.signature_json import signature_from_json, signature_to_json
from tersor.ir.structure import flatten

X, Y, Z = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64), torch.zeros(2)


def signature(
    args: tuple[Any, ...], kwargs: dict[str, Any], parameters: tuple[str, ...], dims: dict[str, Range] | None = None
) -> Signature:
    """The signature of a call: a size of 2 stands for the dimension `batch` where `dims` has it."""
    tensors, structure = flatten((args, kwargs))
    by_position, by_name = structure.children
    names = [*by_position.paths(), *by_name.paths()]
    specs = tuple(
        TensorSpec(name, t.dtype, tuple("batch" if dims and size == 2 else size for size in t.shape))
        for name, t in zip(names, tensors, strict=True)
    )
    return Signature(specs, by_position, by_name, flatten(X)[1], parameters, dims or {})


def same(found: list[Tensor], *expected: Tensor) -> bool:
    return [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


# -- binding ---------------------------------------------------------------------------------------------------------


def test_a_call_as_it_was_traced() -> None:
    assert same(signature((X, Y), {"z": Z}, ("x", "y", "z")).flatten((X, Y), {"z": Z}), X, Y, Z)


def test_positional_inputs_by_name() -> None:
    both = signature((X, Y), {}, ("x", "y"))
    assert same(both.flatten((X,), {"y": Y}), X, Y)
    assert same(both.flatten((), {"y": Y, "x": X}), X, Y)


def test_keyword_inputs_by_position() -> None:
    named = signature((X,), {"y": Y, "z": Z}, ("x", "y", "z"))
    assert same(named.flatten((X, Y), {"z": Z}), X, Y, Z)
    assert same(named.flatten((X, Y, Z), {}), X, Y, Z)


def test_keyword_inputs_in_any_order() -> None:
    assert same(signature((), {"a": X, "b": Y}, ("a", "b")).flatten((), {"b": Y, "a": X}), X, Y)


def test_constants_may_be_left_out_and_may_not_change() -> None:
    fixed = signature((X,), {"flag": True, "z": Z}, ("x", "flag", "z"))
    assert same(fixed.flatten((X,), {"z": Z}), X, Z)
    assert same(fixed.flatten((X,), {"z": Z, "flag": True}), X, Z)
    with pytest.raises(SignatureError, match="not nested as they were"):
        fixed.flatten((X,), {"z": Z, "flag": False})


def test_nested_inputs() -> None:
    nested = signature(({"a": X, "b": [Y, Z]},), {}, ("batch",))
    assert same(nested.flatten(({"a": X, "b": [Y, Z]},), {}), X, Y, Z)
    assert [spec.name for spec in nested.inputs] == ["0.a", "0.b.0", "0.b.1"]


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((X,), {}),
    ((X, Y, Z), {}),
    ((X, Y), {"q": Z}),
    ((X, Y), {"x": X}),
    ((X, [Y]), {}),
]


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_do_not_bind(call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    with pytest.raises(SignatureError, match="not nested as they were"):
        signature((X, Y), {}, ("x", "y")).flatten(*call)


def test_the_error_shows_what_was_expected_and_found() -> None:
    with pytest.raises(SignatureError) as caught:
        signature((), {"x": X, "y": Y}, ("x", "y")).flatten((), {"x": X})
    assert str(caught.value).splitlines() == [
        "the inputs are not nested as they were when the model was traced",
        "  expected: (x: float32[2, 3], y: int64[2, 3])",
        "  found:    (x: float32[2, 3])",
        "  try:      call with the same arguments, the same constants among them, as the example",
    ]


# -- shapes and dtypes -----------------------------------------------------------------------------------------------


def test_the_error_names_the_input_that_does_not_fit() -> None:
    with pytest.raises(SignatureError) as caught:
        signature((), {"x": X, "y": Y}, ("x", "y")).flatten((), {"x": X, "y": Y.float()})
    assert str(caught.value).splitlines()[:3] == [
        "input 'y' does not fit the program",
        "  expected: y: int64[2, 3]",
        "  found:    y: float32[2, 3]",
    ]


@pytest.mark.parametrize(
    ("bad", "way_out"),
    [
        (torch.zeros(2, 4), "dynamic={'x': {1: 'size_1'}} where"),
        (torch.zeros(5, 3), "dynamic={'x': {0: 'batch'}}, or give batches of 2"),
        (torch.zeros(3), "x.unsqueeze(0)"),
        (torch.zeros(2, 3, 1), "the shape that is expected"),
        (torch.zeros(()), "the shape that is expected"),
        (torch.zeros(2, 3).double(), "cast it: x.to(torch.float32)"),
    ],
)
def test_sizes_ranks_and_dtypes(bad: Tensor, way_out: str) -> None:
    with pytest.raises(SignatureError, match=f"(?s)input 'x' does not fit.*try:.*{re.escape(way_out)}"):
        signature((), {"x": X}, ("x",)).flatten((), {"x": bad})


def dynamic() -> Signature:
    return signature((), {"x": X, "z": Z}, ("x", "z"), {"batch": Range(1, 8)})


def test_dynamic_dimensions_take_their_range() -> None:
    for size in (1, 2, 8):
        tensors = [torch.zeros(size, 3), torch.zeros(size)]
        assert dynamic().check(tensors) == {"batch": size}
        assert same(dynamic().flatten((), dict(zip("xz", tensors, strict=True))), *tensors)


@pytest.mark.parametrize("size", [0, 9])
def test_a_size_out_of_range(size: int) -> None:
    with pytest.raises(SignatureError) as caught:
        dynamic().check([torch.zeros(size, 3), torch.zeros(size)])
    assert f"x: float32[batch, 3] (batch in 1..8, {size} here)" in str(caught.value)


def test_one_dimension_has_one_size() -> None:
    with pytest.raises(
        SignatureError, match=r"input 'z' does not fit(?s:.*)batch in 1\.\.8, 4 here(?s:.*)float32\[5\]"
    ):
        dynamic().check([torch.zeros(4, 3), torch.zeros(5)])


def test_ranges() -> None:
    assert [size in Range(2, 4) for size in (1, 2, 4, 5)] == [False, True, True, False]
    assert 10**9 in Range()
    assert "3" not in Range()
    assert (str(Range(1, 4)), str(Range())) == ("1..4", "1..")


# -- text and files --------------------------------------------------------------------------------------------------


def test_described_on_one_line() -> None:
    assert dynamic().describe() == "(x: float32[batch, 3], z: float32[batch], batch in 1..8)"


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (X, ("output",)),
        ((X, [Y]), ("output_0", "output_1.0")),
        ({"logits": X, "hidden": (Y, Z)}, ("logits", "hidden.0", "hidden.1")),
    ],
)
def test_output_names(outputs: Any, names: tuple[str, ...]) -> None:
    empty = flatten(())[1]
    assert Signature((), empty, flatten({})[1], flatten(outputs)[1]).output_names == names


def test_plain_data_and_back() -> None:
    for each in (dynamic(), signature(({"a": X}, 2.5), {"y": Y, "n": None}, ("a", "b", "y", "n"))):
        assert signature_from_json(json.loads(json.dumps(signature_to_json(each)))) == each


def test_data_of_another_shape() -> None:
    good = signature_to_json(dynamic())
    changes: list[dict[str, Any]] = [
        {"inputs": []},
        {"dims": {}},
        {"dims": {"batch": ["1", 2]}},
        {"args": {}},
        {"inputs": [{"name": "x", "dtype": "float", "shape": []}] * 2},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}] * 2},
    ]
    for change in changes:
        with pytest.raises((KeyError, TypeError, ValueError)):
            signature_from_json(good | change)
