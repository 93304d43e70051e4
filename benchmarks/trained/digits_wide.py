"""A wide residual network on enlarged digits: large enough that its latency is that of its arithmetic."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

import tersor as ts
from examples import digits

from ..results import machine
from .trained import Trained, trained

NOISE = 0.6
TRAINING = ts.Training(epochs=8, learning_rate=3e-3, weight_decay=0.01, warmup=0.2, keep_best=False, progress=False)


def digits_wide(seed: int = 0, width: int = 128, size: int = 16, rows: int | None = None) -> Trained:
    """Images float32[batch, 1, size, size] to logits float32[batch, 10]; the metric is the accuracy.

    The digits have normal noise of deviation 0.6, as those of `digits_cnn(noise=0.6)`, and are enlarged after it.
    rows: train on so many images only.
    """
    data = digits.load(seed)
    generator = torch.Generator().manual_seed(seed)
    train_x, test_x = (_noisy(x, size, generator) for x in (data.train_images, data.test_images))
    count = len(train_x) if rows is None else rows
    batches = ts.ShuffledBatches(train_x[:count], data.train_labels[:count], size=min(64, count))
    test = list(zip(test_x.split(150), data.test_labels.split(150), strict=True))
    torch.manual_seed(seed)
    model = digits.DigitsNet(width)
    return trained(
        "digits_wide", model, batches, test, F.cross_entropy, digits.accuracy, ts.Better.HIGHER,
        replace(TRAINING, seed=seed, precision=precision()),
    )  # fmt: skip


def precision() -> ts.Precision:
    """bfloat16 where the processor multiplies it, which trains in a third of the time."""
    return ts.Precision.BFLOAT16 if machine()["bfloat16"] else ts.Precision.FLOAT32


def _noisy(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    noisy = images + NOISE * torch.randn(images.shape, generator=generator)
    return F.interpolate(noisy, (size, size), mode="bilinear", align_corners=False)
