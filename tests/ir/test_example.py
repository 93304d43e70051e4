"""Synthetic inputs run: they fit the signature, and indices point at rows that exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import SignatureError
from tersor.ir.example import example_of, synthesize
from tersor.ir.program import Program


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.table = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor, i: Tensor) -> Any:
        return self.function(self.table, x, i)


def traced(function: Callable[..., Any], x: Tensor, i: Tensor, **options: Any) -> Program:
    return trace(Function(function), (x, i), **options)


INDEXING: dict[str, tuple[Callable[..., Any], int]] = {
    "embedding": (lambda t, x, i: nn.functional.embedding(i, t) + x.sum(), 5),
    "reshaped": (lambda t, x, i: nn.functional.embedding(i.reshape(-1).to(torch.int32), t) + x.sum(), 5),
    "index": (lambda t, x, i: t[i] + x.sum(), 5),
    "index of the second dimension": (lambda t, x, i: t[:, i] + x.sum(), 3),
    "index_select": (lambda t, x, i: t.index_select(1, i.flatten()) + x.sum(), 3),
    "gather": (lambda t, x, i: x.gather(1, i), 4),
    "scatter": (lambda t, x, i: x.scatter(1, i, x), 4),
    "the least of two": (lambda t, x, i: t[i].sum() + x[:, i].sum() + t[:, i].sum(), 3),
}


@pytest.mark.parametrize("name", INDEXING)
def test_indices_are_spread_over_the_rows(name: str) -> None:
    function, rows = INDEXING[name]
    program = traced(function, torch.randn(64, 4), torch.zeros(64, 4, dtype=torch.int64))
    _, indices = synthesize(program)
    assert set(indices.flatten().tolist()) == set(range(rows))
    program.run(synthesize(program))


def test_what_the_values_are() -> None:
    def function(t: Tensor, x: Tensor, i: Tensor) -> Tensor:
        return x.masked_fill(i == 0, 0.0)

    def of(i: Tensor, x: Tensor | None = None) -> tuple[Tensor, ...]:
        return synthesize(traced(function, torch.randn(400, 4) if x is None else x, i))

    floats, mask = of(torch.zeros(400, 4, dtype=torch.int64))
    assert abs(float(floats.mean())) < 0.1
    assert abs(float(floats.std()) - 1) < 0.1
    assert mask.unique().tolist() == [1]
    assert bool(of(torch.zeros(400, 4, dtype=torch.bool))[1].all())
    images = of(torch.zeros(400, 4, dtype=torch.uint8))[1]
    assert len(images.unique()) > 200
    half = of(torch.zeros(8, 4, dtype=torch.int64), torch.zeros(8, 4, dtype=torch.bfloat16))[0]
    assert half.dtype is torch.bfloat16
    assert len(half.unique()) > 20


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    program = traced(lambda t, x, i: t[i] + x.sum(), torch.randn(2, 4), torch.zeros(9, dtype=torch.int64))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = synthesize(program), synthesize(program), synthesize(program, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def dynamic() -> Program:
    def function(t: Tensor, x: Tensor, i: Tensor) -> Tensor:
        return x[:, i]

    names = {"x": {0: "batch", 1: "rows"}, "i": {0: "count"}}
    return traced(function, torch.randn(4, 9), torch.zeros(5, dtype=torch.int64), dynamic=names)


def test_dynamic_dimensions_are_small_and_unlike_each_other() -> None:
    program = dynamic()
    x, i = synthesize(program)
    sizes = (*x.shape, *i.shape)
    assert min(sizes) >= 2
    assert len(set(sizes)) == 3
    assert program.run((x, i))[0].shape == (x.shape[0], i.shape[0])


def test_chosen_sizes_bound_the_indices_too() -> None:
    x, i = synthesize(dynamic(), sizes={"batch": 1, "rows": 2, "count": 100})
    assert (x.shape, i.shape) == ((1, 2), (100,))
    assert set(i.tolist()) == {0, 1}


def test_sizes_are_checked() -> None:
    with pytest.raises(SignatureError, match="no dynamic dimension 'length'"):
        synthesize(dynamic(), sizes={"length": 2})
    with pytest.raises(SignatureError, match="does not fit"):
        synthesize(dynamic(), sizes={"batch": 0})


def test_the_traced_example_comes_first() -> None:
    program = dynamic()
    assert program.example is not None
    assert example_of(program) is program.example
    program.example = None
    assert [t.dtype for t in example_of(program)] == [torch.float32, torch.int64]
