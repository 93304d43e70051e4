"""How far outputs are apart, against plain numpy, and the first node that differs."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.passes.compare import (
    TOLERANCE,
    coarsest,
    difference,
    first_difference,
    node_values,
    shape_mismatch,
    sqnr,
    within_rounding,
)

aten = torch.ops.aten


def test_figures_are_those_of_numpy() -> None:
    reference, candidate = [torch.randn(3, 4), torch.randn(5)], [torch.randn(3, 4), torch.randn(5)]
    a = np.concatenate([t.numpy().ravel() for t in reference]).astype(np.float64)
    b = np.concatenate([t.numpy().ravel() for t in candidate]).astype(np.float64)
    found = difference(reference, candidate)
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.relative == pytest.approx(np.abs(a - b).max() / np.abs(a).max())
    assert found.sqnr == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert "SQNR" in str(found)


def test_equal_outputs() -> None:
    for tensor in (torch.randn(3), torch.zeros(3), torch.empty(0), torch.tensor([True]), torch.tensor([2**40])):
        found = difference([tensor], [tensor.clone()])
        assert (found.max_abs, found.relative, found.sqnr, str(found)) == (0, 0, math.inf, "equal")
        assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_fast_ratio_is_the_same_ratio(dtype: torch.dtype) -> None:
    a = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    b = (a + 0.01 * torch.randn(50, 7, generator=torch.Generator().manual_seed(1))).to(dtype)
    a = a.to(dtype)
    assert sqnr(a, b) == pytest.approx(difference([a], [b]).sqnr, rel=1e-5)
    assert (sqnr(a, a), sqnr(a * 0, b)) == (math.inf, -math.inf)
    hidden = a.clone()
    hidden[0] = -math.inf
    assert sqnr(hidden, b) == difference([hidden], [b]).sqnr


def test_something_against_nothing() -> None:
    found = difference([torch.zeros(2)], [torch.ones(2)])
    assert (found.relative, found.sqnr, found.cosine) == (math.inf, -math.inf, 0.0)


def test_values_that_stop_being_finite_are_counted_and_others_left_out() -> None:
    nan, inf = math.nan, math.inf
    found = difference([torch.tensor([1.0, 2.0, inf, nan])], [torch.tensor([nan, 2.0, -inf, 1.0])])
    assert found.new_nonfinite == 1
    assert found.max_abs == 0
    assert "became NaN" in str(found)
    assert not within_rounding([torch.ones(1)], [torch.full((1,), inf)])


@pytest.mark.parametrize(
    ("dtype", "step", "close"),
    [
        (torch.float32, 1e-5, True),
        (torch.float32, 1e-3, False),
        (torch.float16, 1e-2, True),
        (torch.float64, 1e-8, False),
        (torch.int64, 1, False),
    ],
)
def test_rounding_depends_on_the_type(dtype: torch.dtype, step: float, close: bool) -> None:
    tensor = torch.tensor([1, 0]).to(dtype)
    assert within_rounding([tensor], [tensor + torch.tensor([0, 1]).to(dtype) * step]) is close


def test_outputs_computed_from_a_coarser_type_are_good_for_its_rounding() -> None:
    program = trace(Widened(), torch.randn(2, 4))
    assert coarsest(program) == TOLERANCE[torch.float32]
    wide = torch.ones(2, dtype=torch.float64)
    assert not within_rounding([wide], [wide + 1e-7])
    assert within_rounding([wide], [wide + 1e-7], coarsest(program))


class Widened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double() * 2


def test_shapes_types_and_numbers_of_outputs() -> None:
    x = torch.zeros(2, 3)
    assert shape_mismatch(["y"], [x], [x]) is None
    assert shape_mismatch(["y"], [x], [x, x]) == "1 outputs became 2"
    assert shape_mismatch(["y"], [x], [x.double()]) == "y: torch.float32 (2, 3) became torch.float64 (2, 3)"
    assert shape_mismatch(["y", "z"], [x, x], [x, x[0]]) == "z: torch.float32 (2, 3) became torch.float32 (3,)"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).sigmoid())  # type: ignore[no-any-return]


@cache
def net() -> Program:
    return trace(Net(), torch.randn(3, 4))


def test_node_values_are_those_of_a_run() -> None:
    program = net()
    values: dict[str, Tensor] = {}
    x = torch.randn(3, 4)
    node_values(program, [x], lambda node, value: values.__setitem__(node.name, value))
    assert torch.equal(values[program.outputs[0].name], program(x))
    assert torch.equal(values["relu"], values["linear"].relu())
    assert not values["linear"].requires_grad


@pytest.mark.parametrize(("tensor", "node"), [("a.weight", "linear"), ("b.bias", "linear_1"), ("c.weight", "linear_2")])
def test_the_first_node_that_differs(tensor: str, node: str) -> None:
    before = net()
    after = before.copy()
    after.set_tensor(tensor, after.tensor(tensor) + 0.5)
    found = first_difference(before, after, [torch.randn(3, 4)])
    assert found is not None
    assert found.name == node


def test_none_where_nothing_differs() -> None:
    program = net()
    assert first_difference(program, program.copy(), [torch.randn(3, 4)]) is None


def test_a_changed_shape_and_nan_differ() -> None:
    before = net()
    for target in (aten.t.default, aten.log.default):
        after = before.copy()
        (node,) = after.graph.find_nodes(op="call_function", target=aten.sigmoid.default)
        with after.graph.inserting_after(node):
            new = after.graph.call_function(target, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        (last,) = after.outputs
        after.changed()
        found = first_difference(before, after, [torch.randn(4, 4)])
        assert found is last
