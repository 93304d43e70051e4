"""A transformer that predicts the next byte of Python source: the standard library's own."""

from __future__ import annotations

import math
import sysconfig
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts

from .digits_vit import Layer
from .trained import Trained, trained

CONTEXT = 128
TRAINING = ts.Training(steps=1000, learning_rate=3e-3, weight_decay=0.05, warmup=0.05, clip_norm=1.0, keep_best=False)


class ByteLanguageModel(nn.Module):
    """Bytes, learned positions, causal layers, and the logits of the byte that follows each."""

    def __init__(self, width: int = 96, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, CONTEXT, width))
        self.layers = nn.Sequential(*[Layer(width, heads, causal=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Bytes int64[batch, 128] to logits float32[batch, 128, 256]."""
        logits: Tensor = self.head(self.norm(self.layers(self.embedding(x) + self.positions)))
        return logits


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over every byte, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def bits_per_byte(logits: Tensor, targets: Tensor) -> float:
    """The bits that an ideal coder needs for a byte."""
    return cross_entropy(logits, targets).item() / math.log(2)


@cache
def source() -> tuple[Tensor, Tensor]:
    """The standard library's modules as windows int64[n, 129]: for training, and every tenth module for the test."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_bytes() for file in files]
    parts = [b"".join(text for index, text in enumerate(texts) if (index % 10 == 0) is held) for held in (False, True)]
    train, test = (_windows(part) for part in parts)
    return train, test


def _windows(text: bytes) -> Tensor:
    values = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))
    count = (len(values) - 1) // CONTEXT
    return torch.stack([values[i * CONTEXT : i * CONTEXT + CONTEXT + 1] for i in range(count)])


def byte_language_model(seed: int = 0, width: int = 96, depth: int = 3) -> Trained:
    """Bytes int64[batch, 128] to logits float32[batch, 128, 256]; the metric is bits per byte, on 512 windows.

    The numbers depend on the version of Python, whose source this is.
    """
    train, test = source()
    chosen = test[torch.linspace(0, len(test) - 1, 512).long()]
    batches = ts.ShuffledBatches(train[:, :-1].contiguous(), train[:, 1:].contiguous(), size=16, drop_last=True)
    held_out = list(zip(chosen[:, :-1].split(64), chosen[:, 1:].split(64), strict=True))
    torch.manual_seed(seed)
    model = ByteLanguageModel(width, depth)
    training = replace(TRAINING, seed=seed)
    return trained(
        "byte_language_model", model, batches, held_out, cross_entropy, bits_per_byte, ts.Better.LOWER, training
    )
