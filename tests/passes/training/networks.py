"""Small networks and data that can be learned, for the tests of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.passes.training.program_task import ProgramTask, Settings


def net(norm: bool = True, dropout: float = 0.0) -> nn.Module:
    """Images float32[batch, 1, 4, 4] to logits float32[batch, 3]."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=not norm),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(96, 3),
    )


def data(rows: int = 96, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images and the class of their brightest third, which a small network learns in a few epochs."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 1, 4, 4, generator=generator)
    thirds = torch.stack([part.mean(dim=1) for part in images.reshape(rows, 16)[:, :15].split(5, dim=1)], dim=1)
    return images, thirds.argmax(dim=1)


def program(norm: bool = True, dropout: float = 0.0) -> ts.Program:
    """The network, traced with any batch size."""
    return ts.trace(net(norm, dropout), data(4)[0], dynamic={"input": {0: "batch"}})


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's."""
    return float((logits.argmax(dim=1) == labels).float().mean())


def same(left: ts.Program, right: ts.Program) -> bool:
    """Whether two programs hold the same bits."""
    ours, theirs = left.tensors(), right.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def task(loss: Any = F.cross_entropy, given: ts.Program | None = None, **settings: Any) -> ProgramTask:
    """A program that is to be trained."""
    return ProgramTask(given or program(), Settings(loss, **settings))
