"""How many channels each layer keeps, against every way there is."""

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.clock import Clock
from tersor.compression.allotments import Ground, Search
from tersor.compression.attempts import Attempts
from tersor.compression.measurement import Gauge, Measured
from tersor.compression.plan import Ingredients, Plan
from tersor.lowering import resolve
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.training.options import Better

FLOORS = (0.9, 0.75, 0.6)
COSTS = (
    {"conv2d": 1.0, "conv2d_1": 1.0, "conv2d_2": 1.0},
    {"conv2d": 6.0, "conv2d_1": 1.0, "conv2d_2": 1.0},
    {"conv2d": 1.0, "conv2d_1": 1.0, "conv2d_2": 6.0},
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 20, 3), nn.Conv2d(20, 20, 3)
        self.head = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@lru_cache
def given() -> tuple[ts.Program, Tensor]:
    torch.manual_seed(3)
    images = nn.functional.interpolate(torch.randn(24, 3, 3, 3), size=(9, 9))
    return ts.trace(Net().eval(), images[:2], dynamic={"x": {0: "batch"}}), images


def likeness(found: ts.Program) -> float:
    program, images = given()
    with torch.no_grad():
        ours, theirs = ((outputs - outputs.mean(0)).flatten() for outputs in (found(images), program(images)))
    return float(nn.functional.cosine_similarity(ours, theirs, dim=0))


def ground(table: LayerTable, trials: int = 100, better: Better = Better.HIGHER) -> Ground:
    program, images = given()
    target = resolve("onnxruntime")
    metric = likeness if better is Better.HIGHER else lambda found: 1 - likeness(found)
    attempts = Attempts(program, Ingredients(target.preferences, program, [images]), Gauge(target, metric))
    whole = Measured(1, 1, 1, latency=1.0, clock=Clock.MEASURED)
    return Ground(attempts, Plan(), program, table, whole, better, trials)


@lru_cache
def every() -> tuple[dict[str, int], ...]:
    """All allotments in multiples of four."""
    sizes = ground(LayerTable.of(given()[0], COSTS[0])).sizes
    counts = [range(4, size + 1, 4) for size in sizes.values()]
    return tuple(dict(zip(sizes, found, strict=True)) for found in itertools.product(*counts))


@lru_cache
def worth() -> tuple[float, ...]:
    judge = ground(LayerTable.of(given()[0], COSTS[0]), trials=1000)
    return tuple(map(judge.worth, every()))


@pytest.mark.parametrize("costs", COSTS)
def test_what_is_found_is_nearly_the_best_of_all(costs: dict[str, float]) -> None:
    """Within 3 % of the cheapest that keeps the floor, at a quarter of the trials."""
    for floor in FLOORS:
        judge = ground(LayerTable.of(given()[0], costs), trials=50)
        search = Search(judge, floor, 4, 4)
        found = min(map(search.refined, search.starts()), key=lambda allotment: allotment.spent)
        least = min(judge.spent(counts) for counts, value in zip(every(), worth(), strict=True) if value >= floor)
        assert found.worth >= floor
        assert least <= found.spent <= 1.03 * least
        assert judge.trials >= 0


def test_a_metric_that_is_to_fall_leads_to_the_same() -> None:
    table = LayerTable.of(given()[0], COSTS[1])
    found = [
        min(map(search.refined, search.starts()), key=lambda allotment: allotment.spent).counts
        for search in (
            Search(ground(table), 0.75, 4, 4),
            Search(ground(table, better=Better.LOWER), -0.25, 4, 4),
        )
    ]
    assert found[0] == found[1]
