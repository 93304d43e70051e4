"""Pruning with fine-tuning: gradient ranking beside random choice, progressive beside one cut, all in one run.

The ResNet-8 of 16, 32 and 64 channels on digits with noise of deviation 0.6, as in training_quantization.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import torch

import tersor as ts

from .results import Row
from .trained import Trained, digits_cnn
from .trained.seeds import SEEDS, row

RECOVER = ts.Training(epochs=6, learning_rate=3e-3, weight_decay=0.01, warmup=0.1, progress=False)
STEPS = 4


@cache
def model(seed: int) -> Trained:
    """The noisy task."""
    return digits_cnn(seed, width=16, noise=0.6)


def labelled(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches that a criterion reads."""
    images, labels = model(seed).train.tensors
    return list(zip(images[:512].split(64), labels[:512].split(64), strict=True))


def criterion(seed: int, by_gradient: bool) -> ts.Criterion:
    """First-order Taylor scores, or dice."""
    return ts.Taylor(labelled(seed), model(seed).loss) if by_gradient else ts.Random(seed)


def channels(seed: int, by_gradient: bool, recover: ts.Training | None, left: float = 0.6) -> float:
    """The accuracy, in percent, with a share of the channels left, and fine-tuned or not."""
    passes: list[ts.Pass] = [ts.PruneChannels(ts.Channels(left), criterion(seed, by_gradient))]
    if recover is not None:
        passes.append(ts.Finetune(model(seed).train, model(seed).loss, training=recover))
    return 100 * model(seed).score_after(*passes)


def parameters(seed: int, steps: int, recover: ts.Training, left: float = 0.2) -> float:
    """The accuracy with a share of the parameters left, cut in so many steps, each with its part of the fine-tuning."""
    distillation = ts.Distillation(model(seed).program, hard=0.5)
    each = dataclasses.replace(recover, epochs=recover.epochs * STEPS // steps)
    passes: list[ts.Pass] = []
    for _ in range(steps):
        passes.append(ts.PruneChannels(ts.Parameters(left ** (1 / steps)), criterion(seed, True)))
        passes.append(ts.Distill(model(seed).train, model(seed).loss, distillation, training=each))
    return 100 * model(seed).score_after(*passes)


def jointly(seed: int, recover: ts.Training) -> tuple[float, float]:
    """Pruned to half its parameters, distilled and quantized to 4 bits in one run; then the same one after another."""
    given = model(seed)
    prune = ts.PruneChannels(ts.Parameters(0.5), criterion(seed, True))
    training = dataclasses.replace(recover, epochs=3 * recover.epochs)
    events = (ts.At(0.1, prune),)
    joint = ts.TrainQuantized(given.train, given.loss, ts.INT4, training=training, start=0.5, events=events)
    apart: list[ts.Pass] = [
        prune,
        ts.Finetune(given.train, given.loss, training=training),
        ts.Quantize(ts.INT4, calibration=given.calibration()),
    ]
    scores = [100 * given.score_after(*passes) for passes in ([joint], apart)]
    return scores[0], scores[1]


def run(quick: bool) -> list[Row]:
    """Channels, parameters, and a joint schedule."""
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    recover = dataclasses.replace(RECOVER, epochs=1) if quick else RECOVER
    exact = [100 * model(seed).score for seed in seeds]
    rows = [row("ResNet-8, float", exact, "%")]
    for name, training in (("", None), (" and fine-tuning", recover)):
        ours, dice = ([channels(seed, by, training) for seed in seeds] for by in (True, False))
        note = f"{100 * sum(ours) / sum(exact):.1f} % of the accuracy"
        goal = "99 % of the accuracy" if training is not None else ""
        what = f"40 % of the channels by gradient{name}"
        rows.append(row(what, ours, "%", without=dice, name="random", goal=goal, note=note))
    ours, once = ([parameters(seed, steps, recover) for seed in seeds] for steps in (STEPS, 1))
    note = f"{sum(exact) / len(exact) - sum(ours) / len(ours):+.2f} points lost"
    what = "80 % of the parameters, progressively"
    rows.append(row(what, ours, "%", without=once, name="in one cut", goal="at most 1.2 points lost", note=note))
    pairs = [jointly(seed, recover) for seed in seeds]
    together, apart = ([pair[place] for pair in pairs] for place in (0, 1))
    what = "half the parameters and 4 bits in one run: pruned, distilled, quantized"
    return [*rows, row(what, together, "%", without=apart, name="pruned, tuned, then PTQ")]
