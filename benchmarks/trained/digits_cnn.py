"""A ResNet-8 in the manner of MLPerf Tiny's, on handwritten digits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

import tersor as ts
from examples import digits

from .trained import Trained, trained

TRAINING = ts.Training(
    epochs=10, learning_rate=0.01, weight_decay=0.01, warmup=0.2, schedule=ts.Schedule.COSINE, keep_best=False
)


def digits_cnn(
    seed: int = 0,
    width: int = 32,
    rows: int | None = None,
    noise: float = 0.0,
    canvas: int = 8,
    held_out: bool = False,
    training: ts.Training = TRAINING,
) -> Trained:
    """Images float32[batch, 1, 8, 8] to logits float32[batch, 10]; the metric is the accuracy. About 15 s to train.

    rows: train on so many images only; noise, canvas, held_out: see `noisy_digits`. All but the last make the task
    harder, where it would be too easy to tell methods apart.
    """
    data = noisy_digits(seed, noise, held_out, canvas)
    count = len(data.train_images) if rows is None else rows
    batches = ts.ShuffledBatches(data.train_images[:count], data.train_labels[:count], size=min(64, count))
    test = list(zip(data.test_images.split(150), data.test_labels.split(150), strict=True))
    torch.manual_seed(seed)
    model = digits.DigitsNet(width)
    return trained(
        "digits_cnn", model, batches, test, F.cross_entropy, digits.accuracy, ts.Better.HIGHER,
        replace(training, seed=seed),
    )  # fmt: skip


def noisy_digits(seed: int, noise: float = 0.0, held_out: bool = False, canvas: int = 8) -> digits.Digits:
    """The digits, made harder.

    noise: the deviation of normal noise on all images, which span [-1, 1].
    canvas: the side of the images; a digit lies anywhere on one that is larger than 8, so that it has to be found.
    held_out: judge on a quarter of the training images, which are then not trained on, instead of on the test images:
        what hyperparameters are chosen with.
    """
    data = digits.load(seed)
    generator = torch.Generator().manual_seed(seed)
    train_x, test_x = (
        _placed(x, canvas, generator) + noise * torch.randn(len(x), 1, canvas, canvas, generator=generator)
        for x in (data.train_images, data.test_images)
    )
    if not held_out:
        return digits.Digits(train_x, data.train_labels, test_x, data.test_labels)
    count = len(train_x) * 3 // 4
    return digits.Digits(train_x[:count], data.train_labels[:count], train_x[count:], data.train_labels[count:])


def _placed(images: Tensor, canvas: int, generator: torch.Generator) -> Tensor:
    """Each image somewhere on a square of background: float32[n, 1, canvas, canvas]."""
    if canvas == images.shape[-1]:
        return images
    placed = torch.full((len(images), 1, canvas, canvas), -1.0)
    corners = torch.randint(canvas - 8 + 1, (len(images), 2), generator=generator)
    for image, square, (top, left) in zip(images, placed, corners.tolist(), strict=True):
        square[:, top : top + 8, left : left + 8] = image
    return placed
