"""Claim 6: a student of 58 % of the parameters keeps 97 % of its teacher's accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .. import training_distillation as source
from .claim import Claim, Figure, at_least, at_most
from .workers import per_seed, percents


def one(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent: the teacher, and students of logits and attention, of logits, and of labels alone."""
    training = dataclasses.replace(source.STUDENT, epochs=1, steps=2) if quick else source.STUDENT
    student, teacher = source.student(seed), source.teacher(seed)
    return {
        "teacher": 100 * teacher.score,
        "both": source.distilled(seed, training, **source.ATTENTION),
        "logits": source.distilled(seed, training),
        "labels": source.plain(seed, training),
        "size": 100 * student.cost().parameters / teacher.program.cost().parameters,
    }


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """The share of the teacher's accuracy, and of its parameters."""
    found = per_seed(seeds, quick, one)
    both, logits, labels = (percents(found[name], found["teacher"]) for name in ("both", "logits", "labels"))
    note = f"the teacher has {sum(found['teacher']) / len(seeds):.2f} %"
    absence = "labels alone"
    return [
        Figure(
            "of the teacher's accuracy, logits and attention transfer", both, "%", at_least(97), labels, absence, note
        ),
        Figure("of the teacher's accuracy, logits", logits, "%", None, labels, absence),
        Figure("of the teacher's parameters", found["size"], "%", at_most(58)),
    ]


CLAIM = Claim(
    6,
    "A student with 58 % of the parameters has 97 % of its teacher's accuracy, by logits and attention transfer",
    "ResNet-8s on digits that lie anywhere on a larger image under noise of deviation 0.5; the student begins with "
    "fresh weights and sees what its teacher saw, for as many epochs",
    "a longer schedule: the student has seen each image a dozen times",
    3,
    measure,
)
