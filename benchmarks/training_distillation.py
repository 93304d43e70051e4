"""Distilled students beside students that saw the labels alone, and beside students that saw no data at all.

The digits carry noise of deviation 0.6, and students that have labels see 200 training images only: with all of them a
student of half the size learns the task without a teacher.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch

import tersor as ts
from examples.digits import DigitsNet
from tersor.passes.training.reinitialize import reinitialized

from .results import Row
from .trained import Trained, digits_cnn
from .trained.seeds import SEEDS, row

FEW = 200
WIDTH, STUDENT_WIDTH = 16, 12
STUDENT = ts.Training(epochs=40, learning_rate=5e-3, weight_decay=0.01, warmup=0.1, progress=False)
DATA_FREE = ts.Training(epochs=40, learning_rate=5e-3, warmup=0.1, progress=False)
SYNTHESIS = ts.Training(steps=150, optimizer=ts.Optimizer.ADAM, learning_rate=0.1, progress=False)
BLOCKS = ("blocks.0", "blocks.1", "blocks.2")


@cache
def teacher(seed: int) -> Trained:
    """Trained on all images."""
    return digits_cnn(seed, width=WIDTH, noise=0.6)


@cache
def student(seed: int) -> ts.Program:
    """With fresh weights."""
    torch.manual_seed(100 + seed)
    model = DigitsNet(STUDENT_WIDTH).eval()
    return ts.trace(model, (teacher(seed).train.tensors[0][:2],), dynamic={"x": {0: "batch"}})


def few(seed: int) -> ts.ShuffledBatches:
    """The images that a student sees."""
    images, labels = teacher(seed).train.tensors
    return ts.ShuffledBatches(images[:FEW], labels[:FEW], size=50)


def score(seed: int, step: ts.Pass, program: ts.Program | None = None) -> float:
    """The accuracy, in percent, of a student after a pass."""
    learned = ts.PassManager([step], progress=False).run(program or student(seed)).program
    return 100 * teacher(seed).score_of(learned)


def plain(seed: int, training: ts.Training) -> float:
    """A student that sees labels alone."""
    return score(seed, ts.Finetune(few(seed), teacher(seed).loss, training=training))


def distilled(seed: int, training: ts.Training, **features: Any) -> float:
    """A student that sees labels and a teacher."""
    wanted = ts.Distillation(teacher(seed).program, hard=0.1, **features)
    return score(seed, ts.Distill(few(seed), teacher(seed).loss, wanted, training=training))


def data_free(seed: int, source: ts.Source, training: ts.Training, synthesis: ts.Training) -> float:
    """A student that sees a teacher and no data."""
    step = ts.DistillDataFree(teacher(seed).program, source, samples=512, training=training, synthesis=synthesis)
    return score(seed, step)


def with_data(seed: int, training: ts.Training) -> float:
    """A student that sees all images and a teacher, for as many steps."""
    images = teacher(seed).train.tensors[0]
    batches = ts.ShuffledBatches(images[:512], size=64)
    return score(seed, ts.Distill(batches, None, ts.Distillation(teacher(seed).program), training=training))


def run(quick: bool) -> list[Row]:
    """Logits, features, generations, and no data."""
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    training, free, synthesis = STUDENT, DATA_FREE, SYNTHESIS
    if quick:
        training, free, synthesis = (dataclasses.replace(o, epochs=1, steps=2) for o in (training, free, synthesis))
    exact = [100 * teacher(seed).score for seed in seeds]
    size = sum(p.numel() for p in student(0).parameters().values())
    share = size / sum(p.numel() for p in teacher(0).program.parameters().values())
    alone = [plain(seed, training) for seed in seeds]
    rows = [row("teacher", exact, "%"), row(f"student of {share:.0%} of the parameters, {FEW} images", alone, "%")]
    for name, features in (
        ("logits", {}),
        ("logits and attention transfer", {"attention": BLOCKS}),
        ("logits, attention and hints", {"attention": BLOCKS, "hints": BLOCKS}),
        ("logits and relations", {"relate_logits": True}),
    ):
        found = [distilled(seed, training, **features) for seed in seeds]
        kept = 100 * sum(found) / sum(exact)
        goal = "97 % of the teacher's" if name == "logits and attention transfer" else ""
        note = f"{kept:.1f} % of the teacher's"
        rows.append(row(f"student, {name}", found, "%", without=alone, name="labels alone", goal=goal, note=note))
    return [*rows, *_without_data(seeds, free, synthesis)]


def _without_data(seeds: tuple[int, ...], training: ts.Training, synthesis: ts.Training) -> list[Row]:
    data = [with_data(seed, training) for seed in seeds]
    rows = []
    for source in ts.Source:
        found = [data_free(seed, source, training, synthesis) for seed in seeds]
        note = f"{100 * sum(found) / sum(data):.1f} % of that with data"
        what = f"student without data, inputs {source.value}"
        rows.append(row(what, found, "%", without=data, name="with data", goal="92 %", note=note))
    untrained = [100 * teacher(seed).score_of(reinitialized(student(seed), seed)) for seed in seeds]
    return [*rows, row("student before training", untrained, "%")]
