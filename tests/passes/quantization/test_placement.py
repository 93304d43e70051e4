"""Where grids are put, read off the graph's text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError
from tersor.ir.operators import OBSERVE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_PER_TENSOR, INT8_SYMMETRIC
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage

Body = Callable[["Net", Tensor], Any]
IMAGE = torch.randn(2, 4, 8, 8)
ROW = torch.randn(2, 8)


class Net(nn.Module):
    """Layers to write small networks with, and a forward given as a function."""

    def __init__(self, forward: Body) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.linear, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        """Run the function on the layers."""
        y: Tensor = self.body(self, x)
        return y


def observed(program: Program, **options: object) -> dict[str, str]:
    """What is observed: the node observed -> its group, weights left out."""
    result = InsertFakeQuant(**options)(program)  # type: ignore[arg-type]
    nodes = result.graph.find_nodes(op="call_function", target=OBSERVE)
    return {n.args[0].name: str(n.args[1]) for n in nodes if n.args[0].op != "get_attr"}


def placed(forward: Body, x: Tensor, **options: object) -> dict[str, str]:
    """`observed` of a small network."""
    return observed(trace(Net(forward), (x,)), **options)


def test_a_clamp_is_fused_so_only_its_output_is_on_a_grid() -> None:
    found = placed(lambda m, x: m.b(torch.relu(m.a(x))), IMAGE)
    assert set(found) == {"x", "relu", "conv2d_1"}


def test_a_residual_add_between_convolutions_is_quantized() -> None:
    def forward(m: Net, x: Tensor) -> Any:
        y = torch.relu(m.a(x))
        return m.c(torch.relu(m.b(y) + y))

    assert set(placed(forward, IMAGE)) == {"x", "relu", "conv2d_1", "relu_1", "conv2d_2"}


def test_an_add_between_linear_layers_stays_float() -> None:
    """Integer matrix products give floats, so a grid around a lone add would only cost."""

    def forward(m: Net, x: Tensor) -> Any:
        return m.other(m.norm(m.linear(x) + x))

    assert set(placed(forward, ROW)) == {"x", "layer_norm"}


def test_everything_is_quantized_when_asked_for() -> None:
    def forward(m: Net, x: Tensor) -> Any:
        return m.other(F.gelu(m.linear(x) + x))

    assert set(placed(forward, ROW, coverage=Coverage.EVERYTHING)) == {"x", "linear", "add", "gelu", "linear_1"}


def test_what_a_concat_joins_shares_one_grid_and_moves_carry_it() -> None:
    def forward(m: Net, x: Tensor) -> Any:
        y = torch.cat([torch.relu(m.a(x)), F.hardtanh(m.b(x), 0.0, 6.0)], dim=1)
        return m.c(F.max_pool2d(y, 2)[:, 2:6])

    found = placed(forward, IMAGE)
    assert set(found) == {"x", "relu", "hardtanh", "conv2d_2"}
    assert found["relu"] == found["hardtanh"]
    assert len(set(found.values())) == 3


def test_a_float_value_is_put_on_a_grid_for_its_integer_readers_alone() -> None:
    def forward(m: Net, x: Tensor) -> Any:
        y = m.norm(x)
        return m.linear(y) + y

    program = InsertFakeQuant()(trace(Net(forward), (ROW,)))
    assert "aten.linear(%layer_norm_observed" in str(program)
    assert "aten.add.Tensor(%linear, %layer_norm)" in str(program)


def test_several_readers_of_one_value_share_its_grid() -> None:
    assert set(placed(lambda m, x: m.linear(m.norm(x)) * m.other(m.norm(x)), ROW)) == {"layer_norm", "layer_norm_1"}
    found = placed(lambda m, x: (lambda y: m.linear(y) * m.other(y))(m.norm(x)), ROW)
    assert set(found) == {"layer_norm"}


def test_the_grid_goes_before_moves_that_have_no_other_reader() -> None:
    found = placed(lambda m, x: m.linear(torch.tanh(x).reshape(4, 2, 8).transpose(0, 1)), torch.randn(8, 8))
    assert set(found) == {"tanh"}


EVERYTHING = {"coverage": Coverage.EVERYTHING}


def test_functions_of_one_value_in_a_row_are_one_table_where_everything_is_integer() -> None:
    found = placed(lambda m, x: m.b(torch.erf(torch.exp(m.a(x)) - 1.0)), IMAGE, **EVERYTHING)
    assert set(found) == {"x", "conv2d", "erf", "conv2d_1"}
    branched = placed(lambda m, x: m.b((y := torch.exp(m.a(x))) + torch.sin(y)), IMAGE, **EVERYTHING)
    assert {"exp", "sin", "add"} <= set(branched)  # a value that two read has a grid


def test_a_constant_factor_goes_into_the_multiplier_of_what_accumulates() -> None:
    assert "conv2d" not in placed(lambda m, x: m.a(x) * 0.5, IMAGE, **EVERYTHING)
    found = placed(lambda m, x: (m.a(x) + m.b(x)) * 0.5, IMAGE, **EVERYTHING)
    assert {"conv2d", "conv2d_1", "add", "mul"} <= set(found)


def test_what_is_hidden_from_a_softmax_is_on_no_grid() -> None:
    """Minus infinity is on none: the scores before it are put on one."""
    mask = torch.ones(8, 8, dtype=torch.bool).triu(1)

    def forward(m: Net, x: Tensor) -> Any:
        return torch.softmax(m.a(x).masked_fill(mask, float("-inf")), -1)

    assert set(placed(forward, IMAGE, **EVERYTHING)) == {"x", "conv2d", "softmax"}
    zeros = placed(lambda m, x: m.b(m.a(x).masked_fill(mask, 0.0)), IMAGE, **EVERYTHING)
    assert "masked_fill" in zeros


def test_an_input_that_many_move_is_on_one_grid_where_everything_is_integer() -> None:
    found = placed(lambda m, x: m.a(F.max_pool2d(x, 3, 1, 1)) + m.b(x.flip(3)), IMAGE, **EVERYTHING)
    assert "x" in found
    assert not {"max_pool2d", "flip"} & set(found)


def test_everything_is_a_reason_without_any_weight() -> None:
    assert set(placed(lambda m, x: torch.softmax(x, -1), IMAGE, **EVERYTHING)) == {"x", "softmax"}
    with pytest.raises(PassError, match="nothing to quantize"):
        placed(lambda m, x: torch.softmax(x, -1), IMAGE)


def test_what_has_weights_but_no_integer_kernel_is_named() -> None:
    with pytest.raises(PassError, match="conv_transpose2d has no integer kernel"):
        placed(lambda m, x: F.conv_transpose2d(x, m.a.weight), IMAGE)


def test_the_second_of_two_results_that_do_not_only_move_is_float() -> None:
    found = placed(lambda m, x: m.b(m.a(x).topk(8, 3)[0]), IMAGE, **EVERYTHING)
    assert "getitem" in found


def test_skip_and_operators_choose() -> None:
    def forward(m: Net, x: Tensor) -> Any:
        return m.linear(m.a(x))

    program = trace(Net(forward), (IMAGE,))
    assert set(observed(program, operators=("linear",))) == {"conv2d"}
    assert set(observed(program, skip=("linear",))) == {"x", "conv2d"}
    assert set(observed(program, skip=(r"a",))) == {"conv2d"}
    with pytest.raises(PassError, match="nothing to quantize"):
        InsertFakeQuant(skip=(".*",))(program)


@pytest.mark.parametrize(("option", "value"), [("operators", ("conv3d_typo",)), ("skip", ("no_such_layer",))])
def test_an_option_that_matches_nothing_is_refused(option: str, value: tuple[str, ...]) -> None:
    program = trace(Net(lambda m, x: m.a(x)), (IMAGE,))
    with pytest.raises(PassError, match=value[0]):
        InsertFakeQuant(**{option: value})(program)  # type: ignore[arg-type]


def test_the_scheme_decides_the_grids() -> None:
    program = trace(Net(lambda m, x: m.a(x)), (IMAGE,))
    symmetric = str(InsertFakeQuant(INT8_SYMMETRIC)(program))
    assert "tersor.observe(%x, x, None, -127, 127, True)" in symmetric
    per_tensor = str(InsertFakeQuant(INT8_PER_TENSOR)(program))
    assert "tersor.observe(@a.weight, a.weight, None, -127, 127, True)" in per_tensor


def test_a_shared_weight_has_one_grid() -> None:
    program = InsertFakeQuant()(trace(Net(lambda m, x: m.a(torch.relu(m.a(x)))), (IMAGE,)))
    assert str(program).count("tersor.observe(@a.weight") == 1
