"""A small residual network and scikit-learn's handwritten digits, shared by the examples and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import tersor as ts


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, inputs, h, w] to float32[batch, outputs, h/stride, w/stride]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class DigitsNet(nn.Module):
    """A ResNet-8 in the manner of MLPerf Tiny's, for 8x8 images."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images float32[batch, 1, 8, 8] to logits float32[batch, 10]."""
        features = self.blocks(self.stem(x)).mean((2, 3))
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


@dataclass(frozen=True)
class Digits:
    """Images float32[n, 1, 8, 8] in [-1, 1] and labels int64[n], split for training and test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def batches(self, size: int = 32, count: int = 16) -> list[Tensor]:
        """Training images for calibration."""
        return list(self.train_images.split(size)[:count])


def load(seed: int = 0) -> Digits:
    """The 1,797 digits that scikit-learn ships, a quarter of them for the test."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, random_state=seed, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1 for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    return Digits(train_x, train_y, test_x, test_y)


def train(digits: Digits, epochs: int = 8, seed: int = 0, width: int = 32) -> DigitsNet:
    """A trained network, in inference mode. Takes some seconds."""
    torch.manual_seed(seed)
    model = DigitsNet(width).eval()
    batches = ts.ShuffledBatches(digits.train_images, digits.train_labels, size=64)
    options = ts.Training(epochs=epochs, learning_rate=0.01, weight_decay=0.01, warmup=0.25, seed=seed)
    program = ts.trace(model, (digits.train_images[:2],), dynamic={"x": {0: "batch"}})
    finetune = ts.Finetune(batches, nn.functional.cross_entropy, training=options)
    learned = ts.PassManager([finetune]).run(program).program
    model.load_state_dict(learned.tensors(), strict=False)
    return model


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's."""
    return (logits.argmax(dim=1) == labels).float().mean().item()
