"""Which values are on which grid, and who works on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.backends.grids import Grid, grids, integer_nodes
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant


class Net(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        return self.second(self.between(torch.relu(self.first(x))))


def quantized(between: Callable[[Tensor], Tensor]) -> Program:
    x = torch.randn(1, 3, 8, 8)
    return Calibrate([x])(InsertFakeQuant()(trace(Net(between), (x,))))


def named(program: Program) -> tuple[dict[str, Grid], set[str]]:
    found = grids(program)
    return {n.name: grid for n, grid in found.items()}, {n.name for n in integer_nodes(program, found)}


def test_a_move_carries_the_grid_of_what_it_reads() -> None:
    found, integer = named(quantized(lambda t: F.max_pool2d(t, 2).transpose(2, 3)))
    assert found["transpose"] == found["max_pool2d"] == found["relu_quantized"]
    assert integer == {"conv2d", "max_pool2d", "transpose", "conv2d_1"}


def test_a_weight_has_a_grid_with_an_axis() -> None:
    found, _ = named(quantized(lambda t: t))
    assert found["first_weight_quantized"] == Grid(
        "quantization.first_weight.scale", "quantization.first_weight.zero_point", 0, -127, 127
    )


def test_a_join_is_on_a_grid_where_its_inputs_share_one() -> None:
    found, integer = named(quantized(lambda t: torch.cat([t, F.max_pool2d(t, 3, 1, 1)], 1)[:, 2:6]))
    assert found["cat"] == found["relu_quantized"]
    assert {"max_pool2d", "cat"} <= integer


def test_a_move_that_no_integer_kernel_reads_is_left_alone() -> None:
    class Exit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(torch.relu(self.conv(x)).flatten(1))

    x = torch.randn(1, 3, 8, 8)
    found, integer = named(Calibrate([x])(InsertFakeQuant()(trace(Exit(), (x,)))))
    assert "reshape" in found
    assert integer == {"conv2d"}


@pytest.mark.parametrize("between", [lambda t: t.cumsum(1), lambda t: torch.log_softmax(t, 1), lambda t: t.cumprod(1)])
def test_what_computes_in_float_is_on_no_grid(between: Callable[[Tensor], Tensor]) -> None:
    program = quantized(between)
    found = grids(program)
    (computed,) = [n for n in program.graph.nodes if n.name in ("cumsum", "cumprod", "log_softmax")]
    assert computed not in found
    assert computed not in integer_nodes(program, found)
