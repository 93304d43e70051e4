"""Dynamic dimensions: named by the user, free in the program, refused in words where the model fixes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import SignatureError, TraceError
from tersor.ir.shapes import shape_of
from tersor.ir.signature import Range


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)).reshape(x.shape[0], -1))  # type: ignore[no-any-return]


class Add(nn.Module):
    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
        return torch.cat([x, y]) + torch.cat([y, x])


class Batch(nn.Module):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        ids, masks = batch["ids"], batch["masks"]
        return ids * masks[0] * masks[1]  # type: ignore[no-any-return]


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 3) * 2


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Long(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :5] if x.shape[1] > 7 else x


@pytest.mark.parametrize("example", [1, 2, 5])
def test_a_batch_of_any_size_whatever_the_example(example: int) -> None:
    model = Net().eval()
    program = trace(model, torch.randn(example, 3, 6, 6), dynamic={"x": {0: "batch"}}).verify()
    assert program.signature.inputs[0].shape == ("batch", 3, 6, 6)
    assert program.signature.dims == {"batch": Range(1, None)}
    assert shape_of(program, program.outputs[0]) == ("batch", 2)
    assert program.example is not None
    assert program.example[0].shape[0] == example
    for size in (1, 2, 3, 8):
        x = torch.randn(size, 3, 6, 6)
        torch.testing.assert_close(program(x), model(x))
    with pytest.raises(SignatureError):
        program(torch.randn(2, 3, 6, 7))


def test_two_inputs_share_a_dimension_and_one_comes_by_name() -> None:
    rows = {0: "rows"}
    program = trace(Add(), (torch.randn(1, 3),), {"y": torch.randn(1, 3)}, {"x": rows, "y": rows})
    assert list(program.signature.dims) == ["rows"]
    for size in (1, 4):
        x, y = torch.randn(size, 3), torch.randn(size, 3)
        assert torch.equal(program(x, y=y), Add()(x, y=y))
    with pytest.raises(SignatureError, match="'y'"):
        program(torch.randn(4, 3), y=torch.randn(3, 3))


def test_two_inputs_with_dimensions_of_their_own() -> None:
    example = (torch.randn(2, 3),), {"y": torch.randn(3, 3)}
    program = trace(Add(), *example, {"x": {0: "n"}, "y": {0: "m"}})
    assert shape_of(program, program.outputs[0]) == ("m + n", 3)
    assert program(torch.randn(1, 3), y=torch.randn(6, 3)).shape == (7, 3)


def test_nested_inputs_are_named_by_their_path() -> None:
    batch = {"ids": torch.randn(1, 3), "masks": [torch.randn(1, 3), torch.randn(3)]}
    rows = {0: "rows"}
    program = trace(Batch(), (batch,), dynamic={"batch.ids": rows, "batch.masks.0": rows})
    assert [str(spec) for spec in program.signature.inputs] == [
        "batch.ids: float32[rows, 3]", "batch.masks.0: float32[rows, 3]", "batch.masks.1: float32[3]",
    ]  # fmt: skip
    more = {"ids": torch.randn(4, 3), "masks": [torch.randn(4, 3), torch.randn(3)]}
    assert torch.equal(program(more), Batch()(more))


def test_the_range_that_a_branch_implies_is_kept() -> None:
    program = trace(Long(), torch.randn(2, 9), dynamic={"x": {1: "length"}})
    assert program.signature.dims == {"length": Range(8, None)}
    with pytest.raises(SignatureError, match="length in 8"):
        program(torch.randn(2, 6))


def test_a_size_that_the_model_fixes_is_named() -> None:
    with pytest.raises(TraceError, match=r"dimension 0 of 'x' cannot be dynamic: the model works for size 4 only"):
        trace(Fixed(), torch.randn(4, 3), dynamic={"x": {0: "batch"}})
    with pytest.raises(TraceError, match=r"dimension 1 of 'y' cannot be dynamic"):
        trace(Sum(), (torch.randn(4, 3), torch.randn(4, 3)), dynamic={"y": {1: "width"}})


def test_dimensions_that_have_to_be_equal_are_named() -> None:
    with pytest.raises(TraceError, match="'n' and 'm' cannot differ"):
        trace(Sum(), (torch.randn(4, 3), torch.randn(4, 3)), dynamic={"x": {0: "n"}, "y": {0: "m"}})


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [
        ({"z": {0: "n"}}, "'z', which is not an input"),
        ({"x": {2: "n"}}, "no dimension 2"),
        ({"x": {-1: "n"}}, "no dimension -1"),
        ({"x": {0: "a b"}}, "identifier"),
        ({"x": {0: "n", 1: "n"}}, "different size"),
    ],
)
def test_what_does_not_fit_the_inputs_is_refused(dynamic: dict[str, dict[int, str]], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        trace(Sum(), (torch.randn(4, 3), torch.randn(4, 3)), dynamic=dynamic)
