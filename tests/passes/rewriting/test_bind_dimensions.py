"""Dynamic dimensions become numbers; what the program computes stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.errors import PassError
from tersor.passes.rewriting.bind_dimensions import BindDimensions


class Flattens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        result: Tensor = self.linear(y.reshape(y.shape[0], -1)) + y.shape[0] * 2
        return result


def traced() -> ts.Program:
    torch.manual_seed(0)
    return ts.trace(Flattens(), torch.randn(2, 3, 8, 8), dynamic={"x": {0: "batch"}})


@pytest.mark.parametrize("batch", [1, 3])
def test_the_bound_program_computes_the_same(batch: int) -> None:
    program = traced()
    result = ts.PassManager([BindDimensions({"batch": batch})]).run(program)
    x = torch.randn(batch, 3, 8, 8)
    torch.testing.assert_close(result.program(x), program(x))
    assert result.program.signature.dims == {}
    assert f"float32[{batch}, 3, 8, 8]" in str(result.program)
    assert "sym_size" not in str(result.program)


def test_a_dimension_that_is_not_named_gets_its_least_size() -> None:
    assert "float32[1, 3, 8, 8]" in str(BindDimensions()(traced()))


def test_a_static_program_is_left_as_it_is() -> None:
    program = BindDimensions()(traced())
    assert ts.PassManager([BindDimensions()]).run(program).report.rows[-1].notes == ()


def test_the_given_program_stays_dynamic() -> None:
    program = traced()
    BindDimensions()(program)
    assert program(torch.randn(4, 3, 8, 8)).shape == (4, 5)


@pytest.mark.parametrize(("sizes", "message"), [({"length": 4}, "no dynamic dimension"), ({"batch": 0}, "cannot be 0")])
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(PassError, match=message):
        BindDimensions(sizes)(traced())
