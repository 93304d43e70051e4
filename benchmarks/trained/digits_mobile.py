"""A network of depthwise separable convolutions on handwritten digits, whose channels differ in range.

A depthwise channel has nine weights of its own, and batch norm, once it is folded, scales each by a factor of its own.
One step size for all of them is the step size of the largest: the case in which a scale a channel is needed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from examples import digits

from .digits_cnn import TRAINING, noisy_digits
from .trained import Trained, trained


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each with batch norm and relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, inputs, h, w] to float32[batch, outputs, h/stride, w/stride]."""
        x = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(self.norm2(self.pointwise(x)))


class DigitsMobile(nn.Module):
    """A DS-CNN in the manner of MLPerf Tiny's, for 8x8 images."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Separable(width, width, 1), Separable(width, 2 * width, 2), Separable(2 * width, 2 * width, 1),
            Separable(2 * width, 2 * width, 1),
        )  # fmt: skip
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images float32[batch, 1, 8, 8] to logits float32[batch, 10]."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def digits_mobile(seed: int = 0, width: int = 32, noise: float = 0.0, held_out: bool = False) -> Trained:
    """Images float32[batch, 1, 8, 8] to logits float32[batch, 10]; the metric is the accuracy. See `digits_cnn`."""
    data = noisy_digits(seed, noise, held_out)
    batches = ts.ShuffledBatches(data.train_images, data.train_labels, size=64)
    test = list(zip(data.test_images.split(150), data.test_labels.split(150), strict=True))
    torch.manual_seed(seed)
    return trained(
        "digits_mobile", DigitsMobile(width), batches, test, F.cross_entropy, digits.accuracy, ts.Better.HIGHER,
        replace(TRAINING, seed=seed),
    )  # fmt: skip
