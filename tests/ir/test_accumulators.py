"""Bounds of accumulators: inputs are made that reach them, no input exceeds them, and overflow is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from tersor.ir import integer_norms as norms
from tersor.ir import integer_operators as ops
from tersor.ir import signature
from tersor.ir.accumulators import INT32_LIMIT, Range, accumulator_range, is_accumulator, value_range
from tersor.ir.program import Program
from tersor.ir.stage import Stage
from tersor.ir.structure import Structure

aten = torch.ops.aten
Build = Callable[..., fx.Node]


def program_of(build: Build, *shapes: tuple[int | str, ...], **tensors: Tensor) -> tuple[Program, fx.Node]:
    """A program of int8 inputs and constants, and the node that `build(graph, *inputs, **tensors)` makes last."""
    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{place}") for place in range(len(shapes))]
    graph.output((build(graph, *inputs, **{name: graph.get_attr(name) for name in tensors}),))
    specs = tuple(signature.TensorSpec(f"x{place}", torch.int8, shape) for place, shape in enumerate(shapes))
    dims = {size: signature.Range() for shape in shapes for size in shape if isinstance(size, str)}
    nested = Structure("tuple", (Structure("leaf"),) * len(shapes))
    given = signature.Signature(specs, nested, Structure("dict"), Structure("leaf"), dims=dims)
    program = Program.build(graph, tensors, given, stage=Stage.INTEGER)
    return program, program.outputs[0]


def one(target: Callable[..., Any], *rest: Any) -> Build:
    """A graph of one operator: inputs, then constants, then `rest`."""
    return lambda graph, *inputs, **tensors: graph.call_function(target, (*inputs, *tensors.values(), *rest))


def reach(program: Program, node: fx.Node) -> Range:
    found = accumulator_range(program, node)
    assert found is not None
    return found


def int8(shape: tuple[int, ...], seed: int, low: int = -127) -> Tensor:
    return torch.randint(low, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


# -- bounds are reached ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(-128, 127), st.integers(1, 40), st.booleans())
def test_a_linears_bounds_are_reached_and_not_exceeded(seed: int, zero: int, length: int, biased: bool) -> None:
    weight = int8((3, length), seed)
    bias = torch.randint(-(2**28), 2**28, (3,), generator=torch.Generator().manual_seed(seed)).to(torch.int32)

    def build(graph: fx.Graph, x: fx.Node, w: fx.Node, b: fx.Node) -> fx.Node:
        return graph.call_function(ops.INT_LINEAR, (x, w, b if biased else None, zero))

    program, node = program_of(build, (1, length), w=weight, b=bias)
    found = reach(program, node)
    for channel in range(3):
        greatest = torch.where(weight[channel] > 0, 127, -128).to(torch.int8)
        least = torch.where(weight[channel] > 0, -128, 127).to(torch.int8)
        ends = [int(program(x.unsqueeze(0))[0, channel]) for x in (least, greatest)]
        assert ends == [int(found.low[channel]), int(found.high[channel])]
    noise = int8((50, length), seed + 1, low=-128).unsqueeze(1)
    acc = torch.cat([program(x) for x in noise])
    assert bool(((acc >= found.low) & (acc <= found.high)).all())
    assert bool((acc.abs() <= found.magnitude).all())


GEOMETRIES = [([1, 1], [0, 0], [1, 1], 1), ([2, 1], [1, 2], [1, 1], 2), ([1, 1], [2, 2], [2, 2], 4)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("zero", [-128, 0, 127, 31])
def test_a_convolutions_bounds_hold_at_its_padded_edges_too(geometry: tuple[Any, ...], zero: int) -> None:
    """Where the window sticks out, values are missing, and the sum may come nearer to the other end."""
    weight = int8((4, 4 // geometry[3], 3, 3), zero)
    program, node = program_of(
        lambda graph, x, w: graph.call_function(ops.INT_CONV, (x, w, None, zero, *geometry)), (1, 4, 7, 7), w=weight
    )
    found = reach(program, node)
    images = [int8((1, 4, 7, 7), seed, low=-128) for seed in range(20)]
    images += [torch.full((1, 4, 7, 7), value, dtype=torch.int8) for value in (-128, 127)]
    for x in images:
        acc = program(x).movedim(1, -1)
        assert bool(((acc >= found.low) & (acc <= found.high)).all())


def test_the_range_of_a_padded_convolution_holds_zero() -> None:
    """A window that lies on nothing but zero points sums to the bias, whatever the values are."""
    weight = torch.full((1, 1, 1, 1), 100, dtype=torch.int8)

    def build(graph: fx.Graph, x: fx.Node, w: fx.Node) -> fx.Node:
        clamped = graph.call_function(ops.INT_LOOKUP, (x, graph.get_attr("t")))
        return graph.call_function(ops.INT_CONV, (clamped, w, None, -128, [1, 1], [1, 1], [1, 1], 1))

    table = torch.full((256,), 90, dtype=torch.int8)
    graph_build = lambda graph, x, w, t: build(graph, x, w)  # noqa: E731  # `t` is read by name
    program, node = program_of(graph_build, (1, 1, 2, 2), w=weight, t=table)
    found = reach(program, node)
    assert (found.low.tolist(), found.high.tolist()) == ([0], [218 * 100])
    assert sorted(set(program(int8((1, 1, 2, 2), 0)).flatten().tolist())) == [0, 218 * 100]


@pytest.mark.parametrize(("zero_a", "zero_b"), [(0, 0), (-128, 127), (127, 127), (-128, -128), (5, -9)])
def test_products_reach_their_bounds(zero_a: int, zero_b: int) -> None:
    values = torch.arange(-128, 128, dtype=torch.int8)
    program, node = program_of(one(ops.INT_MUL, zero_a, zero_b), (256, 1), (1, 256))
    found, acc = reach(program, node), program(values[:, None], values[None])
    assert (int(found.low), int(found.high)) == (int(acc.min()), int(acc.max()))
    product, summed = program_of(one(ops.INT_MATMUL, zero_a, zero_b), (256, 3), (3, 256))
    bound, sums = reach(product, summed), product(values[:, None].repeat(1, 3), values[None].repeat(3, 1))
    assert (int(bound.low), int(bound.high)) == (int(sums.min()), int(sums.max()))


@pytest.mark.parametrize("zero", [-128, 3, 127])
def test_sums_reach_their_bounds(zero: int) -> None:
    ends = torch.stack([torch.full((3, 4, 6), value, dtype=torch.int8) for value in (-128, 127)])
    for target, rest in (
        (ops.INT_SUM, ([2, 3], False, zero)),
        (ops.INT_SUM_POOL, (zero, [4, 3], [1, 1], [0, 0], False)),
    ):
        program, node = program_of(one(target, *rest), (2, 3, 4, 6))
        found, acc = reach(program, node), program(ends)
        assert int(found.low) == min(int(acc.min()), 0)  # a padded window may sum to nothing
        assert int(found.high) == max(int(acc.max()), 0)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("length", [1, 2, 5, 100, 1000])
def test_normalized_rows_stay_within_their_bounds(center: bool, length: int) -> None:
    """A single outlier in a flat row goes farthest: to the square root of the length."""
    weight, bias = (torch.randint(-2000, 2000, (length,)).to(torch.int32) for _ in range(2))
    program, node = program_of(
        lambda graph, x, w, b: graph.call_function(norms.INT_NORMALIZE, (x, w, b, -1, 1, 0, center)),
        (4, length), w=weight, b=bias,
    )  # fmt: skip
    found = reach(program, node)
    rows = torch.full((4, length), -1, dtype=torch.int8)
    for place in {0, length // 2, length - 1}:
        rows[:, place] = torch.tensor([127, -128, 0, -2])
        acc = program(rows)
        assert bool(((acc >= found.low) & (acc <= found.high)).all())
        rows[:, place] = -1


# -- any order of adding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_adding_exceeds_the_worst_partial_sum(seed: int) -> None:
    """The worst order adds all that is positive first; with the zero point taken off, or folded into the bias."""
    weight, zero = int8((5, 60), seed), (-128, 127, 0, 77, -3)[seed]
    bias = torch.randint(-(2**20), 2**20, (5,)).to(torch.int32)
    program, node = program_of(
        lambda graph, x, w, b: graph.call_function(ops.INT_LINEAR, (x, w, b, zero)), (1, 60), w=weight, b=bias
    )
    worst = reach(program, node).worst_partial_sum
    wide = weight.long()
    for x in (torch.where(wide > 0, 127, -128), torch.where(wide > 0, -128, 127), int8((5, 60), seed, -128).long()):
        for terms, start in (((x - zero) * wide, bias.long()), (x * wide, bias.long() - zero * wide.sum(1))):
            for sign in (1, -1):
                ahead = (sign * terms).clamp(min=0).sum(1)
                assert int(torch.maximum(start.abs(), (sign * start).clamp(min=0) + ahead).max()) <= worst


OVERFLOWS: dict[str, tuple[Build, list[tuple[int, ...]], dict[str, Tensor]]] = {
    "linear": (one(ops.INT_LINEAR, None, 0), [(1, 70_000)], {"w": torch.full((1, 70_000), 127, dtype=torch.int8)}),
    "matmul": (one(ops.INT_MATMUL, 0, 0), [(1, 32_768), (32_768, 1)], {}),
    "sum": (one(ops.INT_SUM, [0], False, 0), [(1 << 23,)], {}),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_what_can_overflow_is_found(name: str) -> None:
    build, shapes, tensors = OVERFLOWS[name]
    program, node = program_of(build, *shapes, **tensors)
    assert reach(program, node).worst_partial_sum >= INT32_LIMIT


def test_a_bias_counts() -> None:
    weight = torch.full((1, 30_000), 127, dtype=torch.int8)
    bias = torch.tensor([INT32_LIMIT - 256 * 127 * 30_000 - 1], dtype=torch.int32)
    build = lambda graph, x, w, b: graph.call_function(ops.INT_LINEAR, (x, w, b, 0))  # noqa: E731
    for extra, fits in ((0, True), (1, False)):
        program, node = program_of(build, (1, 30_000), w=weight, b=bias + extra)
        assert (reach(program, node).worst_partial_sum < INT32_LIMIT) is fits


def test_a_sum_over_a_dynamic_size_has_no_bound() -> None:
    program, node = program_of(one(ops.INT_SUM, [1], False, 0), ("batch", "length"))
    with pytest.raises(ValueError, match="dynamic size"):
        accumulator_range(program, node)
    batched, fine = program_of(one(ops.INT_SUM, [1], False, 0), ("batch", 8))
    assert int(reach(batched, fine).high) == 8 * 127


# -- values ----------------------------------------------------------------------------------------------------------


def test_the_range_of_values_is_seen_through_moves() -> None:
    def build(graph: fx.Graph, x: fx.Node, t: fx.Node) -> fx.Node:
        looked_up = graph.call_function(ops.INT_LOOKUP, (x, t))
        pooled = graph.call_function(ops.INT_MAX_POOL, (looked_up, [2, 2], [2, 2], [0, 0], [1, 1], False))
        return graph.call_function(aten.permute.default, (pooled, [0, 2, 3, 1]))

    program, node = program_of(build, (1, 2, 4, 4), t=torch.arange(256).clamp(100, 120).to(torch.int8))
    assert value_range(program, node) == (100, 120)


def test_the_range_of_values_is_that_of_the_grid_that_they_were_put_on() -> None:
    def build(graph: fx.Graph, x: fx.Node, m: fx.Node) -> fx.Node:
        acc = graph.call_function(ops.INT_MUL, (x, x, 0, 0))
        return graph.call_function(ops.REQUANTIZE, (acc, m, 3, -5, 60))

    program, node = program_of(build, (4,), m=torch.tensor(0.5))
    assert value_range(program, node) == (-5, 60)
    assert not is_accumulator(node)
    assert is_accumulator(node.all_input_nodes[0])


def test_of_an_input_nothing_is_known() -> None:
    program, _ = program_of(one(ops.INT_SUM, [0], False, 0), (4,))
    assert value_range(program, program.placeholders[0]) == (-128, 127)
    assert accumulator_range(program, program.placeholders[0]) is None


def test_a_pad_may_bring_the_zero_point_in() -> None:
    """The zero point that pads need not be among the values: the range is not seen through it."""

    def build(graph: fx.Graph, x: fx.Node, t: fx.Node) -> fx.Node:
        looked_up = graph.call_function(ops.INT_LOOKUP, (x, t))
        return graph.call_function(aten.constant_pad_nd.default, (looked_up, [1, 1], -128))

    program, node = program_of(build, (4,), t=torch.full((256,), 7, dtype=torch.int8))
    low, high = value_range(program, node)
    assert low <= -128
    assert high >= 7
