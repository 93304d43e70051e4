"""Claim 7: a student without data has 92 % of the accuracy of one with data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tersor as ts
from tersor.passes.training.reinitialize import reinitialized

from .. import training_data_free as source
from .claim import Claim, Figure, at_least
from .workers import per_seed, percents


def one(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent: with data, without any by each source of inputs, and before training."""
    training, synthesis = source.DATA_FREE, source.SYNTHESIS
    if quick:
        training, synthesis = (dataclasses.replace(each, epochs=1, steps=2) for each in (training, synthesis))
    untrained = reinitialized(source.student(seed), seed)
    found = {"data": source.with_data(seed, training), "untrained": 100 * source.teacher(seed).score_of(untrained)}
    return found | {each.value: source.data_free(seed, each, training, synthesis) for each in ts.Source}


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """The share of the accuracy of distillation with data."""
    found = per_seed(seeds, quick, one)
    untrained = percents(found["untrained"], found["data"])
    note = f"with data {sum(found['data']) / len(seeds):.2f} %"
    return [
        Figure(f"of the accuracy with data, inputs {each.value}", percents(found[each.value], found["data"]), "%",
               at_least(92), untrained, "before training", note)
        for each in ts.Source
    ]  # fmt: skip


CLAIM = Claim(
    7,
    "Distillation without data has 92 % of the accuracy of distillation with data",
    "a ResNet-8 on digits with noise of deviation 0.6 teaches one with 57 % of its parameters: on 512 training "
    "images without labels, or on inputs made from the teacher's batch norms alone, with as many steps",
    "more steps for the generator, which needs them more than synthesized inputs do",
    6,
    measure,
)
