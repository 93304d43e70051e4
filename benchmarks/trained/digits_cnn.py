"""A ResNet-8 in the manner of MLPerf Tiny's, on handwritten digits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

import tersor as ts
from examples import digits

from .trained import Trained, trained

TRAINING = ts.Training(
    epochs=10, learning_rate=0.01, weight_decay=0.01, warmup=0.2, schedule=ts.Schedule.COSINE, keep_best=False
)


def digits_cnn(seed: int = 0, width: int = 32, rows: int | None = None, noise: float = 0.0) -> Trained:
    """Images float32[batch, 1, 8, 8] to logits float32[batch, 10]; the metric is the accuracy. About 15 s to train.

    rows: train on so many images only; noise: the deviation of normal noise on training and test images, which span
    [-1, 1]. Both make the task harder, where it would be too easy to tell methods apart.
    """
    data = digits.load(seed)
    generator = torch.Generator().manual_seed(seed)
    train_x, test_x = (
        x + noise * torch.randn(x.shape, generator=generator) for x in (data.train_images, data.test_images)
    )
    count = len(train_x) if rows is None else rows
    batches = ts.ShuffledBatches(train_x[:count], data.train_labels[:count], size=min(64, count))
    test = list(zip(test_x.split(150), data.test_labels.split(150), strict=True))
    torch.manual_seed(seed)
    model = digits.DigitsNet(width)
    return trained(
        "digits_cnn", model, batches, test, F.cross_entropy, digits.accuracy, ts.Better.HIGHER,
        replace(TRAINING, seed=seed),
    )  # fmt: skip
