"""Passes that learn name their options alike, so that a recipe can hand any of them data, a loss and a metric."""

from __future__ import annotations

import dataclasses

import pytest

from tersor.passes.base import Pass
from tersor.passes.training.born_again import BornAgain
from tersor.passes.training.distill import Distill
from tersor.passes.training.distill_data_free import DistillDataFree
from tersor.passes.training.finetune import Finetune
from tersor.passes.training.train_quantized import TrainQuantized

LABELLED = ("batches", "loss", "epochs", "training", "metric", "validation", "better")


@pytest.mark.parametrize("kind", [Finetune, TrainQuantized, Distill, BornAgain])
def test_what_learns_from_data_takes_it_under_the_same_names(kind: type[Pass]) -> None:
    fields = [field.name for field in dataclasses.fields(kind)]
    assert set(LABELLED) <= set(fields)
    assert fields[:2] == ["batches", "loss"]


@pytest.mark.parametrize("kind", [Finetune, TrainQuantized, Distill])
def test_what_trains_the_program_that_it_was_given_freezes_and_runs_passes_on_the_way(kind: type[Pass]) -> None:
    assert {"freeze", "freeze_batch_norm", "events"} <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", [Finetune, TrainQuantized, Distill, BornAgain, DistillDataFree])
def test_every_option_has_a_default(kind: type[Pass]) -> None:
    assert kind() is not None


def test_what_learns_without_data_cannot_be_given_any() -> None:
    fields = {field.name for field in dataclasses.fields(DistillDataFree)}
    assert {"epochs", "training"} <= fields
    assert not fields & {"batches", "validation", "calibration", "loss", "metric"}
