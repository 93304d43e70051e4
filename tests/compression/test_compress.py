"""One call from a model and a budget to an artifact; its recipe; what is said where it cannot be."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.layer_costs import LayerCosts
from tersor.backends.neon.backend import Neon
from tersor.compression.budget import Budget, Limit
from tersor.ir.errors import PassError, RecipeError, TrainingError
from tersor.run_record import RunRecord


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stripes along one side, along the other, or none, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    x = torch.randn(count, 2, 8, 8, generator=generator) * 0.5
    x[labels == 0, :, ::2] += 1
    x[labels == 1, :, :, ::2] += 1
    return x, labels


X, Y = images(96, 0)
HELD_OUT = [images(128, 1)]
TRAINING = ts.Training(epochs=2, learning_rate=3e-3)


def batches() -> ts.ShuffledBatches:
    return ts.ShuffledBatches(X, Y, size=32)


@lru_cache
def model() -> ts.Program:
    """Trained for a second."""
    torch.manual_seed(0)
    program = ts.trace(Net().eval(), X[:1], dynamic={"x": {0: "batch"}})
    tuned = ts.Finetune(batches(), nn.functional.cross_entropy, training=ts.Training(epochs=12, learning_rate=0.01))
    return ts.PassManager([tuned], verify=False, progress=False).run(program).program


def compress(budget: Budget | None, out: Path | None = None, **options: Any) -> ts.Artifact:
    given: dict[str, Any] = {"metric": "accuracy", "validation": HELD_OUT, "calibration": [X[:32]], **options}
    return ts.compress(model(), budget=budget, out=out, **given)


def trained(budget: Budget | None, out: Path | None = None, **options: Any) -> ts.Artifact:
    return compress(budget, out, data=batches(), loss="cross_entropy", training=TRAINING, **options)


def test_a_budget_is_met_and_everything_is_left(tmp_path: Path) -> None:
    artifact = trained(Budget(macs="0.6x", bytes="0.3x", floor="0.9x"), tmp_path)
    before, after = model().cost(), ts.load(tmp_path / "program.tersor")
    assert after.cost().macs <= 0.6 * before.macs
    assert after.cost().parameter_bytes <= 0.3 * before.parameter_bytes
    record = RunRecord.load(tmp_path)
    assert record.metric is not None
    assert record.metric.floor is not None
    (chosen,) = (point for point in record.points if point.chosen)
    assert chosen.metric is not None
    assert chosen.metric >= record.metric.floor
    assert all(point.reason or point.error for point in record.points)
    assert record.steps[-1].latency is not None
    assert (tmp_path / "recipe.yaml").read_text() == record.recipe
    with torch.no_grad():
        assert torch.allclose(artifact.run(X), after(X), atol=0.1)


def test_nothing_is_timed_that_nobody_asked_for(tmp_path: Path) -> None:
    compress(None, tmp_path)
    record = RunRecord.load(tmp_path)
    assert record.steps[-1].latency is None
    assert [set(point.costs) for point in record.points] == [{"bytes", "macs", "parameters"}] * 2


def test_the_recipe_replays_to_the_same_bits(tmp_path: Path) -> None:
    first = trained(Budget(macs="0.6x", floor="0.9x"), tmp_path / "first", calibration=None)
    torch.manual_seed(123)  # generators of the process decide nothing
    passes = ts.load_recipe(tmp_path / "first" / "recipe.yaml", data=batches(), validation=HELD_OUT, teacher=model())
    second = ts.compress(model(), passes=passes, out=tmp_path / "second")
    ours, theirs = (ts.load(tmp_path / name / "program.tersor") for name in ("first", "second"))
    assert ours.tensors().keys() == theirs.tensors().keys()
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, theirs.tensor(name)), name
    assert torch.equal(first.run(X), second.run(X))


def test_quantized_training_replays_too(tmp_path: Path) -> None:
    trained(None, tmp_path / "first", target="neon")
    text = (tmp_path / "first" / "recipe.yaml").read_text()
    assert "train_quantized" in text
    passes = ts.load_recipe(tmp_path / "first" / "recipe.yaml", [X[:32]], data=batches(), teacher=model())
    ts.compress(model(), target="neon", passes=passes, out=tmp_path / "second")
    ours, theirs = (ts.load(tmp_path / name / "program.tersor") for name in ("first", "second"))
    assert all(torch.equal(tensor, theirs.tensor(name)) for name, tensor in ours.tensors().items())


def test_without_training_data_there_is_no_training(tmp_path: Path) -> None:
    compress(Budget(latency="0.9x"), tmp_path, target="neon")
    record = RunRecord.load(tmp_path)
    assert {step.promise for step in record.steps} <= {"", "exact", "approximate"}
    assert any("sparse" in point.name for point in record.points)


def test_without_any_data_inputs_are_made_from_the_model(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ts.compress(model(), out=tmp_path)
    assert "calibration: synthesized" in (tmp_path / "recipe.yaml").read_text()
    passes = ts.load_recipe(tmp_path / "recipe.yaml", teacher=model())
    ts.compress(model(), passes=passes, out=tmp_path / "again")
    ours, theirs = (ts.load(folder / "program.tersor") for folder in (tmp_path, tmp_path / "again"))
    assert all(torch.equal(tensor, theirs.tensor(name)) for name, tensor in ours.tensors().items())


def test_a_target_that_may_run_more_on_grids_faster_is_asked(tmp_path: Path) -> None:
    compress(Budget(floor="0.9x"), tmp_path, target="tensorrt", trials=2)
    assert any("w8a8 of everything" in point.name for point in RunRecord.load(tmp_path).points)


@lru_cache
def plain() -> ts.Program:
    """Without norms there are no statistics to make inputs from."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    return ts.trace(nn.Sequential(layers, nn.Linear(256, 3)).eval(), X[:4], dynamic={"input": {0: "batch"}})


@pytest.mark.parametrize(
    ("make", "target", "given"),
    [
        (model, "neon", {"calibration": [X[:32]], "budget": Budget(latency="0.6x")}),
        (model, "hls", {"calibration": [X[:32]], "budget": Budget(bytes="0.2x")}),
        (model, "neon", {"calibration": [X[:32]], "budget": Budget(floor="0.9x"), "trials": 12}),
        pytest.param(
            model, "neon", {"budget": Budget(macs="0.5x"), "training": ts.Training(steps=5)}, marks=pytest.mark.slow
        ),
        (plain, "onnxruntime", {}),
        (plain, "neon", {"budget": Budget(macs="0.5x")}),
    ],
    ids=["latency", "bytes", "floor", "no data", "no data, no norms", "no data, no norms, cut"],
)
def test_every_recipe_replays_to_the_same_bits(
    make: Callable[[], ts.Program], target: str, given: dict[str, Any], tmp_path: Path
) -> None:
    judged: dict[str, Any] = {"metric": "accuracy", "validation": HELD_OUT} if "floor" in str(given) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the example alone calibrates
        ts.compress(make(), target=target, out=tmp_path / "first", **judged, **given)
        passes = ts.load_recipe(tmp_path / "first" / "recipe.yaml", given.get("calibration"), teacher=make())
        ts.compress(make(), target=target, passes=passes, out=tmp_path / "second")
    ours, theirs = (ts.load(tmp_path / name / "program.tersor") for name in ("first", "second"))
    assert ours.tensors().keys() == theirs.tensors().keys()
    assert all(torch.equal(tensor, theirs.tensor(name)) for name, tensor in ours.tensors().items())
    with torch.no_grad():
        assert torch.equal(ours(X), theirs(X))


def test_nothing_but_a_floor_goes_as_far_as_it_allows(tmp_path: Path) -> None:
    compress(Budget(floor="0.9x"), tmp_path, target="neon", trials=20)
    record = RunRecord.load(tmp_path)
    assert record.metric is not None
    assert record.metric.floor is not None
    kept = [p for p in record.points if p.metric is not None and p.metric >= record.metric.floor and p.costs]
    (chosen,) = (point for point in record.points if point.chosen)
    assert chosen.costs["instructions"] == min(p.costs["instructions"] for p in kept if "instructions" in p.costs)
    assert any("allotments of channels were judged" in note for note in record.notes)


@pytest.mark.parametrize("limit", [{"macs": "0.5x"}, {"floor": 0.5}])
def test_a_model_with_nothing_to_compress_is_told_so(limit: dict[str, Any]) -> None:
    with pytest.raises(ts.BudgetError, match="no plan can be carried out") as caught:
        compress_other(nn.ReLU(), torch.randn(2, 4), limit)
    assert "there is nothing to quantize" in str(caught.value)
    assert "at least one of conv1d" in str(caught.value)


def test_a_model_without_channels_to_cut_is_quantized() -> None:
    """What its inputs and outputs pin stays, and quantization alone is taken."""
    artifact = compress_other(nn.Linear(8, 4), torch.randn(2, 8), {"floor": 0.5})
    assert "Chosen: w8a8, quantized after training" in artifact.explanation
    with pytest.raises(ts.BudgetError, match="so small on this target") as caught:
        compress_other(nn.Linear(8, 4), torch.randn(2, 8), {"macs": "0.5x"})
    assert "there is nothing to prune" in str(caught.value)


def compress_other(model: nn.Module, example: Tensor, limit: dict[str, Any]) -> ts.Artifact:
    """With a metric that is always 1."""
    given: dict[str, Any] = {"calibration": [example], "metric": lambda _: 1.0, "target": "neon"}
    return ts.compress(model.eval(), example, budget=Budget(**limit), **given)


def test_trials_bound_the_search() -> None:
    scored: list[int] = []

    def count(program: ts.Program) -> float:
        scored.append(1)
        with torch.no_grad():
            return float((program(HELD_OUT[0][0]).argmax(1) == HELD_OUT[0][1]).float().mean())

    compress(Budget(floor="0.9x"), target="onnxruntime", metric=count, validation=None, trials=10)
    assert 4 <= len(scored) <= 10 + 2 + 4  # beside trials: the model, quantized alone, and what is confirmed
    with pytest.raises(RecipeError, match="trials is a count"):
        compress(Budget(floor="0.9x"), trials=0)


def test_a_student_is_taught_and_compressed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    student = ts.trace(Net(8).eval(), X[:1], dynamic={"x": {0: "batch"}})
    compress(
        Budget(bytes="0.2x"),
        tmp_path,
        student=student,
        data=batches(),
        loss="cross_entropy",
        training=ts.Training(epochs=12, learning_rate=0.01),
    )
    assert "teacher: given" in (tmp_path / "recipe.yaml").read_text()
    (chosen,) = (point for point in RunRecord.load(tmp_path).points if point.chosen)
    assert chosen.metric is not None
    assert chosen.metric > 0.6


@pytest.mark.parametrize(
    ("budget", "words", "hint"),
    [
        (Budget(macs="0.0001x"), "no plan is so small", "relax to macs="),
        (Budget(macs="0.3x", floor=1.5), "below the floor before anything", "relax the floor"),
        (Budget(latency="1ms"), "says nothing of seconds", "0.5x"),
    ],
)
def test_a_budget_that_cannot_be_met(budget: Budget, words: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ts.BudgetError, match=words) as caught:
        compress(budget, tmp_path / "out", target="neon")
    assert hint in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_floor_that_stops_it_says_what_was_reached() -> None:
    with pytest.raises(ts.BudgetError, match=r"no plan keeps the floor within macs 0\.15x") as caught:
        compress(Budget(macs="0.15x", floor="0.99x"), target="neon")
    text = str(caught.value)
    assert "at best, by: channels cut" in text
    assert "data= and loss= to train with" in text


def test_a_refusal_says_what_would_be_enough() -> None:
    """The limits that it names are met, with the floor kept."""
    with pytest.raises(ts.BudgetError, match="the floor is kept at") as caught:
        compress(Budget(bytes="0.2x", floor="0.9x"), target="neon")
    (limit,) = re.findall(r'limits of bytes="([0-9.]+x)"', str(caught.value))
    compress(Budget(bytes=limit, floor="0.9x"), target="neon")


def worse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Teaches other labels."""
    return 20 * nn.functional.cross_entropy(outputs, (targets + 1) % 3)


def test_training_that_does_harm_is_left_out(tmp_path: Path) -> None:
    budget = Budget(macs="0.9x", floor="0.5x")
    compress(
        budget, tmp_path, target="neon", data=batches(), loss=worse, training=ts.Training(epochs=12, learning_rate=0.01)
    )
    points = RunRecord.load(tmp_path).points
    (chosen,) = (point for point in points if point.chosen)
    assert "cut" in chosen.name
    assert chosen.options["tuned"] == "no"
    assert any(point.options.get("tuned") == "yes" and "stepped back" in point.reason for point in points)


@dataclasses.dataclass(frozen=True)
class Counted(Neon):
    """Counts how often its costs are asked for."""

    asked: list[int] = dataclasses.field(default_factory=list, compare=False)

    def prepared_costs(self, program: ts.Program) -> LayerCosts:
        self.asked.append(1)
        return super().prepared_costs(program)


@pytest.mark.parametrize(("budget", "costs"), [(None, 0), (Budget(macs="0.6x"), 1)])
def test_metric_and_latency_are_measured_once(budget: Budget | None, costs: int, tmp_path: Path) -> None:
    """The metric of the model and of what was chosen; the latency of what was chosen, where a budget is given."""
    scored: list[int] = []

    def half(program: ts.Program) -> float:
        scored.append(1)
        return 0.5

    target = Counted()
    compress(budget, tmp_path, target=target, metric=half, validation=None)
    assert (len(scored), len(target.asked)) == (2, costs)
    assert RunRecord.load(tmp_path).steps[-1].metric == 0.5


def nan(program: ts.Program) -> float:
    return float("nan")


def broken(program: ts.Program) -> float:
    raise ZeroDivisionError("nobody there")


def never(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ValueError("not today")


def once() -> Iterator[Any]:
    yield X[:32], Y[:32]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metric": nan, "validation": None}, PassError, "the metric gave no number"),
        ({"metric": broken, "validation": None}, PassError, "metric failed: ZeroDivisionError: nobody there"),
        ({"data": [(X[:32], Y[:32])], "loss": never}, TrainingError, "loss failed on the first batch: ValueError"),
        ({"data": [(X[:32], Y[:32])], "loss": lambda *_: 3.0}, TrainingError, "no tensor of one value"),
        ({"data": [(X[:32], Y[:32])], "loss": lambda x, _: x.sum() * torch.nan}, TrainingError, "is not finite"),
        ({"data": once(), "loss": "cross_entropy"}, TrainingError, "read only once"),
        ({"data": [], "loss": "cross_entropy"}, TrainingError, "empty"),
        ({"loss": "cross_entropy"}, TrainingError, "needs data"),
        ({"loss": "crossentropy", "data": [1]}, RecipeError, "there is no loss 'crossentropy'"),
        ({"metric": None, "validation": None}, RecipeError, "a floor needs a metric"),
        ({"validation": None}, RecipeError, "metric 'accuracy' needs data"),
        ({"data": [(X[:4, :1], Y[:4])]}, TrainingError, "does not fit"),
    ],
)
def test_wrong_arguments_are_named_before_anything_runs(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        compress(Budget(floor=0.1), **options)


@pytest.mark.parametrize(
    ("what", "given", "limit"),
    [
        ("latency", "0.5x", Limit(0.5, True)),
        ("latency", "50%", Limit(0.5, True)),
        ("latency", "8ms", Limit(0.008)),
        ("latency", 0.002, Limit(0.002)),
        ("bytes", "2MB", Limit(2e6)),
        ("bytes", "1 KiB", Limit(1024.0)),
        ("macs", "3M", Limit(3e6)),
        ("floor", "0.99x", Limit(0.99, True)),
        ("floor", 0.97, Limit(0.97)),
    ],
)
def test_amounts_are_read(what: str, given: Any, limit: Limit) -> None:
    assert Limit.of(what, given) == limit


@pytest.mark.parametrize(
    "make",
    [
        lambda: Budget(latency="fast"),
        lambda: Budget(bytes="2ms"),
        lambda: Budget(macs=0),
        lambda: Budget(macs="1.5x"),
        lambda: Budget(latency=float("nan")),
        lambda: Budget(bytes=True),
        lambda: Budget(macs="1..2x"),
    ],
)
def test_what_is_no_limit_is_refused(make: Callable[[], Budget]) -> None:
    with pytest.raises(RecipeError):
        make()


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Interrupted while the second plan is scored; the run that is started again measures nothing twice."""
    calls: list[int] = []

    def count(program: ts.Program, stop: int) -> float:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        with torch.no_grad():
            return float((program(HELD_OUT[0][0]).argmax(1) == HELD_OUT[0][1]).float().mean())

    budget = Budget(floor="0.9x")
    given: dict[str, Any] = {"validation": None, "target": Neon(), "checkpoint": tmp_path / "kept", "trials": 10}
    with pytest.raises(KeyboardInterrupt):
        compress(budget, tmp_path / "out", metric=lambda program: count(program, 4), **given)
    assert not (tmp_path / "out").exists()
    calls.clear()
    compress(budget, tmp_path / "out", metric=lambda program: count(program, 0), **given)
    resumed = len(calls)
    calls.clear()
    compress(budget, tmp_path / "again", metric=lambda program: count(program, 0), **{**given, "checkpoint": None})
    assert resumed < len(calls)
    ours, theirs = (ts.load(tmp_path / name / "program.tersor") for name in ("out", "again"))
    assert all(torch.equal(tensor, theirs.tensor(name)) for name, tensor in ours.tensors().items())
