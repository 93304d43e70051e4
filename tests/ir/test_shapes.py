"""Shapes in the graph against the shapes of real runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import VerificationError
from tersor.ir.program import Program
from tersor.ir.shapes import ShapeContext, describe, infer, propagate, same, shape_of
from tersor.ir.signature import Range, TensorSpec

aten = torch.ops.aten


class Net(nn.Module):
    """Sizes that are products, sums and quotients of the dynamic ones, and an operator with several results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, stride=2)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        hidden = self.conv(x)
        values, order = hidden.sort(dim=1)
        return torch.cat([hidden, hidden]), values.flatten(0, 1), order, torch.cat([x, y], dim=2), x.to(torch.int8)


@cache
def traced() -> Program:
    names = {"x": {0: "batch", 2: "length"}, "y": {0: "batch"}}
    return trace(Net(), (torch.randn(3, 3, 12), torch.randn(3, 3, 5)), dynamic=names)


def program() -> Program:
    return traced().copy()


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the type of every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def evaluated(ours: Program, value: Any, sizes: dict[str, int]) -> Any:
    if isinstance(value, Tensor):
        return tuple(ours.shapes.evaluate(size, sizes) for size in value.shape), value.dtype
    if isinstance(value, list | tuple):
        return [evaluated(ours, item, sizes) for item in value]
    return ours.shapes.evaluate(value, sizes)


@pytest.mark.parametrize(("batch", "length"), [(2, 12), (5, 13), (1, 3), (7, 40)])
def test_every_shape_is_that_of_a_run(batch: int, length: int) -> None:
    ours, sizes = program(), {"batch": batch, "length": length}
    recorder = Recorder(ours.module)
    recorder.run(torch.randn(batch, 3, length), torch.randn(batch, 3, 5))
    for node, value in recorder.seen.items():
        if node.op != "output":
            assert evaluated(ours, node.meta["val"], sizes) == evaluated(ours, value, sizes), node.name


def test_dynamic_sizes_are_written_in_the_names_of_dimensions() -> None:
    ours = program()
    shapes = [shape_of(ours, node) for node in ours.outputs]
    assert shapes[0][0] == "2*batch"
    assert shapes[3] == ("batch", 3, "length + 5")
    assert describe(ours, ours.outputs[4]) == "Node"
    assert describe(ours, ours.outputs[4].meta["val"]) == "int8[batch, 3, length]"
    assert describe(ours, (torch.zeros(2), None, 3)) == "(float32[2], None, 3)"


def test_propagating_again_changes_nothing() -> None:
    ours = program()
    before = str(ours)
    propagate(ours)
    assert str(ours) == before


def test_propagating_after_a_rewrite() -> None:
    ours = trace(nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.BatchNorm1d(4)), (torch.randn(2, 3, 12),))
    keep = torch.tensor([0, 2])
    ours.set_tensors({name: tensor[keep] for name, tensor in ours.tensors().items()})
    with pytest.raises(VerificationError, match="stale"):
        ours.verify()
    propagate(ours)
    ours.verify()
    assert shape_of(ours, ours.outputs[0]) == ours.run([torch.randn(2, 3, 12)])[0].shape == (2, 2, 10)


def test_same_compares_dtypes_and_sizes() -> None:
    ours = program()
    x, y = (node.meta["val"] for node in ours.placeholders)
    with ours.shapes.mode:
        static: list[Callable[[], Tensor]] = [
            lambda: torch.empty(2, 3),
            lambda: torch.empty(2, 3),
            lambda: torch.empty(3, 2),
            lambda: torch.empty(2, 3, dtype=torch.float64),
        ]
        first, again, turned, wider = (make() for make in static)
    assert same(ours, first, again)
    assert not same(ours, first, turned)
    assert not same(ours, first, wider)
    assert same(ours, x, x)
    assert not same(ours, x, y)
    assert same(ours, (first, 3), (again, 3))
    assert not same(ours, (first, 3), (again, 4))


def test_an_operator_that_refuses_its_inputs_is_named() -> None:
    ours = program()
    x = ours.placeholders[0]
    with ours.graph.inserting_after(x):
        node = ours.graph.call_function(aten.linear.default, (x, x))
    with pytest.raises(VerificationError, match=r"aten\.linear\.default does not take these inputs") as caught:
        infer(ours, node)
    assert caught.value.node == node.name
    assert caught.value.found == "float32[batch, 3, length], float32[batch, 3, length]"


def test_a_dimension_with_one_size_is_not_dynamic() -> None:
    with pytest.raises(VerificationError, match="'batch' has one size only"):
        ShapeContext({"batch": Range(1, 1)}).input(TensorSpec("x", torch.float32, ("batch", 2)))


@pytest.mark.parametrize("span", [Range(), Range(1, 2), Range(4, 5), Range(3, 3), Range(1, 1000), Range(64)])
def test_ranges_of_every_kind(span: Range) -> None:
    context = ShapeContext({"a": span, "b": span})
    value = context.input(TensorSpec("x", torch.float16, ("a", 3, "b")))
    assert [context.expression(size) for size in value.shape] == ["a", 3, "b"]
    assert [context.evaluate(size, {"a": 7, "b": 9}) for size in value.shape] == [7, 3, 9]
    assert [context.evaluate(size * 2, {"a": 7}) for size in value.shape] == [14, 6, 2]
    assert value.dtype is torch.float16
