"""The optimizer loop: against a plain torch loop, its options one by one, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.ir.errors import TrainingError
from tersor.passes.progress import listening
from tersor.passes.training.batches import ShuffledBatches
from tersor.passes.training.loop import fit
from tersor.passes.training.optimize import optimize
from tersor.passes.training.options import Better, Optimizer, Precision, Schedule, Training
from tersor.passes.training.program_task import ProgramTask
from tersor.passes.training.task import Group

from . import networks

X, Y = networks.data()
BATCHES = list(zip(X.split(32), Y.split(32), strict=True))
QUIET: dict[str, Any] = {"progress": False}


def trained(options: Training, batches: Any = BATCHES, **settings: Any) -> ProgramTask:
    task = networks.task(**settings)
    fit(task, batches, options)
    return task


@pytest.mark.parametrize("optimizer", list(Optimizer))
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_computes_what_a_plain_loop_computes(optimizer: Optimizer, accumulate: int) -> None:
    model = networks.net().train()
    kinds: dict[Optimizer, Any] = {
        Optimizer.SGD: lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
        Optimizer.ADAM: lambda p: torch.optim.Adam(p, 0.01),
        Optimizer.ADAMW: lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0),
    }
    rule = kinds[optimizer](model.parameters())
    for _ in range(2):
        for start in range(0, len(BATCHES), accumulate):
            rule.zero_grad()
            for x, y in BATCHES[start : start + accumulate]:
                (F.cross_entropy(model(x), y) / accumulate).backward()
            rule.step()
    options = Training(
        epochs=2, optimizer=optimizer, learning_rate=0.01, schedule=Schedule.CONSTANT, accumulate=accumulate, **QUIET
    )
    task = trained(options)
    for name, expected in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(task.program.tensor(name), expected, msg=name)


def test_weight_decay_leaves_vectors_alone() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    options = Training(
        steps=1, optimizer=Optimizer.SGD, learning_rate=0.5, weight_decay=0.5, schedule=Schedule.CONSTANT, **QUIET
    )
    optimize({"m": matrix, "v": vector}, lambda batch, share: (matrix.sum() + vector.sum()) * 0, [0], options)
    assert (vector == 1).all()
    assert (matrix < 1).all()


def test_groups_have_their_own_speed() -> None:
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [Group({"slow": slow}), Group({"fast": fast}, speed=10.0)]
    options = Training(steps=1, optimizer=Optimizer.ADAM, learning_rate=0.1, **QUIET)
    optimize(groups, lambda batch, share: (slow + fast).sum(), [0], options)
    assert fast.item() == pytest.approx(10 * slow.item())


def test_gradients_are_clipped_together() -> None:
    weights = nn.Parameter(torch.zeros(4))
    options = Training(
        steps=1, optimizer=lambda g: torch.optim.SGD(g, lr=1.0), learning_rate=1.0, clip_norm=0.5, **QUIET
    )
    optimize({"w": weights}, lambda batch, share: 100 * weights.sum(), [0], options)
    assert weights.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_the_mean_of_the_weights_is_what_is_kept() -> None:
    weight, decay, expected = nn.Parameter(torch.zeros(1)), 0.5, torch.zeros(1)
    seen: list[Tensor] = []
    options = Training(
        steps=20, optimizer=lambda g: torch.optim.SGD(g, lr=1.0), learning_rate=1.0, average=decay,
        schedule=Schedule.CONSTANT, **QUIET,
    )  # fmt: skip
    optimize(
        {"w": weight}, lambda batch, share: -weight.sum(), [0], options,
        constrain=lambda: seen.append(weight.detach().clone()),
    )  # fmt: skip
    for step, value in enumerate(seen):
        rate = min(decay, (1 + step) / (10 + step))
        expected = expected * rate + value * (1 - rate)
    torch.testing.assert_close(weight.detach(), expected)


def test_the_best_state_is_kept_and_training_stops_when_it_gets_no_better() -> None:
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.8])
    kept: list[Tensor] = []

    def metric(logits: Tensor, labels: Tensor) -> float:
        kept.append(logits.clone())
        return next(scores)

    task = networks.task(metric=metric, validation=[(X, Y)])
    outcome = fit(task, BATCHES, Training(epochs=9, patience=2, **QUIET))
    assert outcome.stopped_early
    assert (outcome.metric, outcome.best_step, outcome.steps) == (0.9, 6, 12)
    torch.testing.assert_close(task.program(X), kept[1])


def test_a_metric_that_is_to_shrink() -> None:
    scores = iter([3.0, 1.0, 2.0])
    task = networks.task(metric=lambda *_: next(scores), validation=[(X, Y)])
    outcome = fit(task, BATCHES, Training(epochs=3, **QUIET), Better.LOWER)
    assert (outcome.metric, outcome.best_step) == (1.0, 6)


def test_the_metric_is_the_mean_over_rows_whatever_the_batches() -> None:
    task = networks.task(metric=networks.accuracy, validation=[(X[:90], Y[:90]), (X[90:], Y[90:])])
    assert task.evaluate() == pytest.approx(networks.accuracy(task.program(X), Y))


def test_it_learns_and_the_seed_repeats_it() -> None:
    options = Training(epochs=12, learning_rate=0.02, seed=3, **QUIET)
    runs = [trained(options, ShuffledBatches(X, Y, size=16)) for _ in range(2)]
    assert networks.same(runs[0].program, runs[1].program)
    assert networks.accuracy(runs[0].program(X), Y) > 0.9
    other = trained(Training(epochs=12, learning_rate=0.02, seed=4, **QUIET), ShuffledBatches(X, Y, size=16))
    assert not networks.same(runs[0].program, other.program)


def test_random_numbers_of_the_process_stay_as_they_were() -> None:
    task = networks.task(given=networks.program(dropout=0.5))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    fit(task, ShuffledBatches(X, Y, size=16), Training(epochs=1, **QUIET))
    assert torch.equal(torch.rand(1), expected)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    seen: list[torch.dtype] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return F.cross_entropy(logits.float(), labels)

    task = networks.task(loss)
    fit(task, BATCHES, Training(epochs=1, precision=Precision.BFLOAT16, **QUIET))
    assert seen[0] is torch.bfloat16
    assert {p.dtype for p in task.parameters().values()} == {torch.float32}
    fit(task, BATCHES, Training(epochs=1, **QUIET))
    assert seen[-1] is torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in float16")
def test_a_precision_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(TrainingError, match="float16"):
        trained(Training(precision=Precision.FLOAT16, **QUIET))


def test_progress_tells_loss_metric_and_speed() -> None:
    heard: list[tuple[str, int, int | None, str]] = []

    def listen(description: str, done: int, total: int | None, note: str = "", /) -> None:
        heard.append((description, done, total, note))

    with listening(listen):
        trained(Training(epochs=2), metric=networks.accuracy, validation=[(X, Y)])
    description, done, total, note = heard[-1]
    assert (description, done, total) == ("fine-tune", 6, 6)
    assert "loss " in note
    assert "metric 0." in note
    assert "steps/s" in note


# -- what stops it -------------------------------------------------------------------------------------------------


def test_a_bad_target_is_named() -> None:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return (logits - target).square().mean()

    bad = torch.zeros(32, 3)
    bad[3, 1] = math.nan
    task = networks.task(loss)
    with pytest.raises(
        TrainingError, match=r"(?s)step 1: loss nan.*batch is not finite.*1 of 96 values in target 0.*leave"
    ):
        fit(task, [(X[:32], torch.zeros(32, 3)), (X[:32], bad)], Training(epochs=1, **QUIET))


def test_the_first_bad_node_is_named_with_its_source() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.linear(x)) - 5
            return torch.log(y).exp()

    task = networks.task(lambda out: out.mean(), ts.trace(Root(), torch.randn(2, 3)))
    with pytest.raises(
        TrainingError, match=r"(?s)step 0.*%log = aten.log.default.*test_loop.py.*torch.log\(y\).*clip_norm"
    ):
        fit(task, [torch.randn(2, 3)], Training(epochs=1, **QUIET))


def test_a_parameter_that_went_astray_is_named() -> None:
    task = networks.task(given=networks.program(norm=False))
    huge = Training(epochs=3, learning_rate=1e38, optimizer=Optimizer.SGD, schedule=Schedule.CONSTANT, **QUIET)
    with pytest.raises(TrainingError, match=r"step [12]: .*(parameter|gradient|tensor that) .*not finite|first tensor"):
        fit(task, BATCHES, huge)


def test_a_loss_that_alone_is_not_finite_is_named() -> None:
    task = networks.task(lambda logits, labels: logits.sum() * math.inf)
    with pytest.raises(TrainingError, match="step 0: the loss is not finite"):
        fit(task, BATCHES, Training(epochs=1, **QUIET))


def test_a_gradient_that_is_not_finite_is_named() -> None:
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match=r"(?s)step 0: a gradient is not finite.*the gradient of w"):
        optimize({"w": weight}, lambda batch, share: weight.sqrt().sum(), [0], Training(steps=1, **QUIET))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "training data is empty"),
        (iter(BATCHES), "can be read only once"),
        (3, "cannot be iterated"),
        ([(X[:, 0], Y)], "a batch does not fit the program: input"),
        ([((X, X), Y)], r"a batch is \(what the program is called with"),
        ([X], "missing 1 required positional argument"),
    ],
)
def test_data_that_cannot_be_trained_on(batches: Any, message: str) -> None:
    with pytest.raises((TrainingError, TypeError), match=message):
        trained(Training(epochs=1, **QUIET), batches)


@pytest.mark.parametrize("loss", [lambda *_: 1.0, lambda o, y: o.detach().sum(), lambda o, y: o])
def test_a_loss_that_is_none_is_refused(loss: Any) -> None:
    with pytest.raises(TrainingError, match="the loss is no loss"):
        fit(networks.task(loss), BATCHES, Training(epochs=1, **QUIET))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(TrainingError, match="nothing to train"):
        trained(Training(epochs=1, **QUIET), freeze=(".*",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"steps": 1.5}, {"learning_rate": 0}, {"warmup": 1.0}, {"average": 1.0}, {"accumulate": 0},
        {"patience": 0}, {"clip_norm": -1}, {"final": 2},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        Training(**wrong)


def test_unsized_data_is_counted() -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Any]:
            for chosen in torch.randperm(len(X)).split(32):
                yield X[chosen], Y[chosen]

    outcome = fit(networks.task(), Unsized(), Training(epochs=2, **QUIET))
    assert (outcome.steps, outcome.epochs) == (6, 2)
