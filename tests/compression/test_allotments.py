"""How many channels each layer keeps, against every way there is."""

from __future__ import annotations

import dataclasses
import itertools
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.clock import Clock
from tersor.compression.allotments import Found, Ground
from tersor.compression.attempts import Attempts
from tersor.compression.measurement import Gauge, Measured
from tersor.compression.model_search import ModelSearch
from tersor.compression.plan import Ingredients, Plan
from tersor.compression.prices import Key
from tersor.compression.starts import Starts
from tersor.lowering import resolve
from tersor.passes.preferences import Multiples
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.axes import Remaining
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.counts import named
from tersor.passes.pruning.groups import groups
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


def ground(
    table: LayerTable, trials: int = 100, better: Better = Better.HIGHER, multiples: Multiples | None = None
) -> Ground:
    program, images = given()
    target = resolve("onnxruntime")
    likes = dataclasses.replace(target.preferences, multiples=multiples or Multiples())
    metric = likeness if better is Better.HIGHER else lambda found: 1 - likeness(found)
    attempts = Attempts(program, Ingredients(likes, program, [images]), Gauge(target, metric))
    whole = Measured(1, 1, 1, latency=1.0, clock=Clock.MEASURED)
    return Ground(attempts, Plan(), program, table, whole, better, trials)


@lru_cache
def every() -> tuple[Key, ...]:
    """All allotments in multiples of four."""
    sizes = ground(LayerTable.of(given()[0], COSTS[0])).sizes
    return tuple(itertools.product(*(range(4, size + 1, 4) for size in sizes)))


@lru_cache
def worth() -> tuple[float, ...]:
    judge = ground(LayerTable.of(given()[0], COSTS[0]), trials=1000)
    return tuple(map(judge.worth, every()))


@pytest.mark.parametrize("at_once", [False, True])
def test_quick_estimates_are_those_of_the_table(at_once: bool) -> None:
    table = LayerTable.of(given()[0], COSTS[1], rest=0.5, at_once=at_once)
    judge = ground(table)
    costs = Costs(judge.start, dimensions(judge.start))
    leaves = [group.leaf for group in named(groups(judge.start, costs.found)).values()]
    for key in every():
        expected = table(costs, Remaining(dict(zip(leaves, key, strict=True))))
        assert judge.prices.estimates(key) == pytest.approx(expected)


def test_estimates_count_whole_multiples_of_channels() -> None:
    """By hand: outputs in sixteens, so that 20 are computed as 32 from the first; inputs in fours."""
    judge = ground(LayerTable.of(given()[0], COSTS[1]), multiples=Multiples(16, 4))
    for a, b, c in every():
        b_computed, c_computed = (32 if size > 16 else 16 for size in (b, c))
        layers = (6, a / 16 * b_computed / 32, b / 20 * c_computed / 32)
        assert judge.prices.estimates((a, b, c)) == pytest.approx(sum(layers), rel=1e-3)
    assert judge.prices.estimates((13, 14, 18)) == pytest.approx(judge.prices.estimates((16, 16, 20)), rel=1e-3)


def test_estimates_learn_what_a_target_says_of_a_layer() -> None:
    """Each layer takes 3 beside what the table says, and 5 more where the second has 12 inputs and 8 outputs."""
    judge = ground(LayerTable.of(given()[0], COSTS[0], rest=9.0))
    nodes = {node.name: node for node in judge.start.graph.nodes}
    costs = Costs(judge.start, dimensions(judge.start))
    leaves = [group.leaf for group in named(groups(judge.start, costs.found)).values()]

    def said(key: Key) -> dict[str, float]:
        left = Remaining(dict(zip(leaves, key, strict=True)))
        found = {name: judge.table.of_node(costs, nodes[name], left) + 3 for name in COSTS[0]}
        return found | {"conv2d_1": found["conv2d_1"] + 5 * (key[:2] == (12, 8))}

    before = {key: judge.prices.estimates(key) for key in ((12, 8, 4), (12, 8, 20), (12, 12, 4))}
    judge.prices.estimates.learn((16, 20, 20), said((16, 20, 20)))
    assert {key: judge.prices.estimates(key) for key in before} == pytest.approx(before)
    judge.prices.estimates.learn((12, 8, 16), said((12, 8, 16)))
    more = {key: judge.prices.estimates(key) - cost for key, cost in before.items()}
    assert more == pytest.approx({(12, 8, 4): 5, (12, 8, 20): 5, (12, 12, 4): 0}, abs=1e-9)


@pytest.mark.parametrize(("together", "asked"), [(0.0, 25 + 3 * 5 + 3), (1.0, 100)])
def test_a_target_whose_layers_add_up_is_asked_once_for_each(together: float, asked: int) -> None:
    """At the first of four widths of the first layer for all 5 x 5 of the others, at the next for the 5 that the second
    has with it, and three times more to see that they add up. Where they do not it is asked for every allotment."""
    judge = ground(LayerTable.of(given()[0], COSTS[0], rest=9.0))
    nodes = {node.name: node for node in judge.start.graph.nodes}
    costs = Costs(judge.start, dimensions(judge.start))
    leaves = [group.leaf for group in named(groups(judge.start, costs.found)).values()]
    answers = []

    def said(key: Key) -> Measured:
        left = Remaining(dict(zip(leaves, key, strict=True)))
        layers = {name: judge.table.of_node(costs, nodes[name], left) for name in COSTS[0]}
        latency = 9 + sum(layers.values()) + together * key[0] * key[2]
        return dataclasses.replace(judge.whole, latency=latency, layers=layers)

    def ask(key: Key) -> Measured:
        answers.append(key)
        return said(key)

    judge.prices.ask = ask
    for key in every():
        assert judge.prices(key) == pytest.approx(said(key).latency)
    assert len(answers) == asked


def searched(judge: Ground, floor: float) -> Found:
    """What comes of the starts, and of a search from there with all trials that are left."""
    list(Starts(judge, floor, 4, 4).found())
    search = ModelSearch(judge, floor, 4, 4)
    search.run(judge.trials)
    found = search.best()
    assert found is not None
    return found


@pytest.mark.parametrize("costs", COSTS)
def test_what_is_found_is_the_best_of_all(costs: dict[str, float]) -> None:
    """The cheapest that keeps the floor, at a quarter of the trials that enumeration takes."""
    for floor in FLOORS:
        judge = ground(LayerTable.of(given()[0], costs), trials=25)
        found = searched(judge, floor)
        least = min(judge.prices(key) for key, value in zip(every(), worth(), strict=True) if value >= floor)
        assert found.worth >= floor
        assert found.spent == least
        assert judge.trials >= 0


def test_a_metric_that_is_to_fall_leads_to_the_same() -> None:
    table = LayerTable.of(given()[0], COSTS[1])
    found = searched(ground(table), 0.75), searched(ground(table, better=Better.LOWER), -0.25)
    assert found[0].key == found[1].key


def test_what_was_judged_is_asked_for_its_cost_where_the_target_knows() -> None:
    """Starts judge more than they ask the target about; the cheapest of all that was judged is the best."""
    judge = ground(LayerTable.of(given()[0], COSTS[0]))
    judge.prices.ask = lambda key: dataclasses.replace(judge.whole, latency=judge.prices.estimates(key))
    narrow, whole = (12, 16, 16), judge.sizes
    worth = min(judge.worth(narrow), judge.worth(whole))
    judge.prices(whole)
    found = ModelSearch(judge, worth, 4, 4).best()
    assert found is not None
    assert found.key == narrow


def test_counts_become_finer_where_coarse_ones_promise_nothing_more() -> None:
    """Long before the trials are gone: what is found is below the cheapest in multiples of four."""
    judge = ground(LayerTable.of(given()[0], COSTS[1]), trials=400)
    list(Starts(judge, 0.75, 4, 4).found())
    search = ModelSearch(judge, 0.75, 4, 2)
    assert search.steps == [4, 2]
    search.run(150)
    found = search.best()
    least = min(judge.prices(key) for key, value in zip(every(), worth(), strict=True) if value >= 0.75)
    assert found is not None
    assert found.spent < least
    assert judge.trials > 400 * 0.3


@pytest.mark.parametrize(("multiple", "finest", "expected"), [(2, 1, 2), (16, 1, 2), (16, 4, 4), (4, 8, 4)])
def test_starts_go_in_multiples_that_leave_a_choice(multiple: int, finest: int, expected: int) -> None:
    """Eight counts an axis on average: of 16, 20 and 20 channels, twos."""
    judge = ground(LayerTable.of(given()[0], COSTS[0]))
    assert Starts(judge, 0.75, multiple, finest).multiple == expected


def test_what_nearly_keeps_the_floor_is_the_cheapest_of_that() -> None:
    judge = ground(LayerTable.of(given()[0], COSTS[0]), trials=1000)
    for key in every():
        judge.worth(key)
    search = ModelSearch(judge, 0.8, 4, 4)
    best, near = search.best(), search.nearly(0.03)
    assert best is not None
    assert near is not None
    assert near.spent == min(judge.prices(key) for key, value in zip(every(), worth(), strict=True) if value >= 0.77)
    assert 0.77 <= near.worth < 0.8
    assert near.spent < best.spent
    search.refused = frozenset({near.key})
    again = search.nearly(0.03)
    assert again is not None
    assert again.key != near.key
