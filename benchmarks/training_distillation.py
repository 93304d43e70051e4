"""Distilled students beside students that saw the labels alone: accuracy in percent on held-out data.

A digit lies anywhere on a canvas of 12x12 pixels under noise of deviation 0.5, so that a network has to find it. With
the plain 8x8 digits a student of half the size learns the task without a teacher, and no method can be told from
another. Teacher and students see the same images and labels for the same number of epochs.

Weights of the parts of the loss were chosen with `held_out=True`, on a quarter of the training images; the test images
were looked at once, for the rows.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch

import tersor as ts
from examples.digits import DigitsNet

from .results import Row
from .trained import Trained, digits_cnn
from .trained.seeds import SEEDS, row

CANVAS, NOISE = 12, 0.5
WIDTH, STUDENT_WIDTH = 16, 12
TEACHER = ts.Training(epochs=12, learning_rate=0.01, weight_decay=0.01, warmup=0.2, keep_best=False)
STUDENT = ts.Training(epochs=12, learning_rate=5e-3, weight_decay=0.01, warmup=0.1, progress=False)
BLOCKS = ("blocks.0", "blocks.1", "blocks.2")
ATTENTION: dict[str, Any] = {"attention": BLOCKS, "attention_weight": 1.0}


@cache
def teacher(seed: int, held_out: bool = False) -> Trained:
    """Trained on all images."""
    return digits_cnn(seed, WIDTH, noise=NOISE, canvas=CANVAS, held_out=held_out, training=TEACHER)


@cache
def student(seed: int, held_out: bool = False) -> ts.Program:
    """With fresh weights."""
    torch.manual_seed(100 + seed)
    model = DigitsNet(STUDENT_WIDTH).eval()
    return ts.trace(model, (teacher(seed, held_out).train.tensors[0][:2],), dynamic={"x": {0: "batch"}})


def share_of_parameters() -> float:
    """The student's parameters over the teacher's."""
    counts = [sum(p.numel() for p in DigitsNet(width).parameters()) for width in (STUDENT_WIDTH, WIDTH)]
    return counts[0] / counts[1]


def plain(seed: int, training: ts.Training = STUDENT, held_out: bool = False) -> float:
    """A student that sees labels alone."""
    given = teacher(seed, held_out)
    return _score(seed, ts.Finetune(given.train, given.loss, training=training), held_out)


def distilled(seed: int, training: ts.Training = STUDENT, held_out: bool = False, **features: Any) -> float:
    """A student that sees labels and a teacher; features: see `tersor.Distillation`, `**ATTENTION` for instance."""
    given = teacher(seed, held_out)
    wanted = ts.Distillation(given.program, **{"hard": 0.1, **features})
    return _score(seed, ts.Distill(given.train, given.loss, wanted, training=training), held_out)


def _score(seed: int, step: ts.Pass, held_out: bool) -> float:
    return 100 * teacher(seed, held_out).score_after(step, start=student(seed, held_out))


def run(quick: bool) -> list[Row]:
    """Logits, and features besides."""
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    training = dataclasses.replace(STUDENT, epochs=1) if quick else STUDENT
    exact = [100 * teacher(seed).score for seed in seeds]
    alone = [plain(seed, training) for seed in seeds]
    kept = f"{100 * sum(alone) / sum(exact):.1f} % of the teacher's"
    what = f"student of {share_of_parameters():.0%} of the parameters, labels alone"
    rows = [row("teacher", exact, "%"), row(what, alone, "%", note=kept)]
    kinds: dict[str, dict[str, Any]] = {
        "logits": {},
        "attention transfer": {"hard": 1.0, **ATTENTION},
        "logits and attention transfer": ATTENTION,
    }
    for name, features in kinds.items():
        found = [distilled(seed, training, **features) for seed in seeds]
        note = f"{100 * sum(found) / sum(exact):.1f} % of the teacher's"
        goal = "97 % of the teacher's" if name == "logits and attention transfer" else ""
        rows.append(row(f"student, {name}", found, "%", without=alone, name="labels alone", goal=goal, note=note))
    return rows
