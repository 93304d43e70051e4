"""The same model, compressed as strongly for four targets: each plan is the best on its own target."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.layer_costs import LayerCosts
from tersor.compression.plan import Ingredients, Plan
from tersor.ir.errors import LoweringError, PassError
from tersor.lowering import resolve
from tersor.recipe_text import recipe_text

TARGETS = ("onnxruntime", "tensorrt", "neon", "hls")


class Net(nn.Module):
    """Convolutions whose arithmetic counts, and functions that not every target computes in integer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.a(x)) + x
        x = nn.functional.hardswish(self.b(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@lru_cache
def given() -> tuple[ts.Program, Tensor]:
    torch.manual_seed(0)
    example = torch.randn(64, 4, 8, 8)
    return ts.trace(Net().eval(), example, dynamic={"x": {0: "batch"}}), example


@lru_cache
def plan(target: str) -> tuple[Plan, ts.Program]:
    """What a target likes at one strength: half of the arithmetic cut, half of the weights zero if it gains by that."""
    program, example = given()
    likes = resolve(target).preferences
    found = Plan(prune=0.5, pattern=likes.sparse(0.5))
    passes = found.passes(Ingredients(likes, program, [example[:16]]))
    return found, ts.PassManager(passes, progress=False).run(program).program


def costs(program: ts.Program, target: str) -> LayerCosts | str:
    """What a plan costs on a target, or why the target refuses it."""
    backend = resolve(target)
    try:
        return backend.layer_costs(program)
    except (LoweringError, PassError) as error:
        return str(error).splitlines()[0]


@pytest.mark.slow
def test_four_targets_get_four_plans() -> None:
    likes = {target: resolve(target).preferences for target in TARGETS}
    told = {plan(target)[0].words(likes[target]) for target in TARGETS}
    made = {target: plan(target)[0].passes(Ingredients(likes[target], given()[0], [])) for target in TARGETS}
    texts = {recipe_text(passes) for passes in made.values()}
    assert len(told) == len(texts) == 4


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tensorrt", "neon", "hls"])
def test_each_plan_is_the_best_on_its_own_target(target: str) -> None:
    """Where costs are modelled; a plan that the target refuses counts as beaten."""
    found = {other: costs(plan(other)[1], target) for other in TARGETS}
    own = found[target]
    assert isinstance(own, LayerCosts)
    refused = {other for other, cost in found.items() if isinstance(cost, str)}
    beaten = {other for other, cost in found.items() if isinstance(cost, LayerCosts) and cost.total > own.total}
    assert beaten | refused == set(TARGETS) - {target}, {other: str(cost) for other, cost in found.items()}


@pytest.mark.slow
def test_onnxruntime_takes_every_plan_and_its_own_is_dense() -> None:
    """It is measured, so nothing is asserted of times; on the same channels it runs a symmetric plan as fast."""
    assert not plan("onnxruntime")[1].sparsity
    assert all(isinstance(costs(plan(other)[1], "onnxruntime"), LayerCosts) for other in TARGETS)
