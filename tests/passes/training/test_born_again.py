"""Generations of students, and fresh weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor as ts
from tersor.ir.errors import TrainingError
from tersor.ir.sparsity import Unstructured
from tersor.passes.training.born_again import BornAgain
from tersor.passes.training.distill import Distillation
from tersor.passes.training.reinitialize import reinitialized

from . import networks

X, Y = networks.data(128)
LONG = ts.Training(epochs=20, learning_rate=0.02, progress=False)


def teacher() -> ts.Program:
    finetune = ts.Finetune(ts.ShuffledBatches(X, Y, size=32), F.cross_entropy, training=LONG)
    return ts.PassManager([finetune]).run(networks.program()).program


def test_each_generation_learns_from_the_one_before() -> None:
    first = teacher()
    step = BornAgain(ts.ShuffledBatches(X, size=32), None, 2, training=LONG)
    result = ts.PassManager([step]).run(first)
    agree = (result.program(X).argmax(1) == first(X).argmax(1)).float().mean()
    assert agree > 0.9
    assert not networks.same(result.program, first)
    notes = result.report.rows[-1].notes
    assert [note.split(":")[0] for note in notes] == ["generation 1", "generation 2"]


def test_the_best_generation_is_the_result_and_the_given_one_counts() -> None:
    first = teacher()
    short = ts.Training(steps=1, progress=False)
    step = BornAgain(
        ts.ShuffledBatches(X, Y, size=32), F.cross_entropy, training=short, metric=networks.accuracy,
        validation=[(X, Y)],
    )  # fmt: skip
    assert networks.same(ts.PassManager([step]).run(first).program, first)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"generations": 0}, "generations"), ({"distillation": Distillation(nn.Identity())}, "the generation before")],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        BornAgain([(X, Y)], F.cross_entropy, **wrong)


def test_fresh_weights_are_drawn_as_torch_draws_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Linear(64, 5)
    )
    model(torch.randn(8, 3, 4, 4))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    program = ts.trace(model.eval(), torch.randn(2, 3, 4, 4))
    fresh = reinitialized(program, seed=1)
    for name, fan_in in (("0.weight", 27), ("3.weight", 128), ("3.bias", 128)):
        values = fresh.tensor(name)
        assert values.abs().max() <= 1 / math.sqrt(fan_in)
        assert values.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.15)
    assert (fresh.tensor("1.weight") == 1).all()
    assert (fresh.tensor("4.bias") == 0).all()
    assert (fresh.tensor("1.running_mean") == 0).all()
    assert (fresh.tensor("1.running_var") == 1).all()
    assert networks.same(fresh, reinitialized(program, seed=1))
    assert not networks.same(fresh, reinitialized(program, seed=2))
    assert (program.tensor("0.weight") == 7).all()


def test_fresh_weights_keep_promised_zeros() -> None:
    program = networks.program()
    weight = program.tensor("7.weight").detach().clone()
    weight[:, ::2] = 0
    program.set_tensor("7.weight", weight)
    program.sparsity["7.weight"] = Unstructured(0.5)
    fresh = reinitialized(program, seed=1)
    assert ((fresh.tensor("7.weight") == 0) == (weight == 0)).all()
    fresh.verify()
