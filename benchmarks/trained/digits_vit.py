"""A small vision transformer on handwritten digits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from examples import digits

from .trained import Trained, trained

TRAINING = ts.Training(epochs=40, learning_rate=2e-3, weight_decay=0.05, warmup=0.1, keep_best=False)


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each after a layer norm and added to what it reads."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, tokens, width] to the same."""
        x = x + self.out(self._attend(self.norm1(x)))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return y.transpose(1, 2).reshape(batch, tokens, width)


class DigitsViT(nn.Module):
    """Patches of 2x2 pixels, four layers, the mean of all tokens to a classifier."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(*[Layer(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images float32[batch, 1, 8, 8] to logits float32[batch, 10]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.classifier(self.norm(self.layers(tokens)).mean(1))
        return logits


def digits_vit(seed: int = 0, width: int = 64, depth: int = 4) -> Trained:
    """Images float32[batch, 1, 8, 8] to logits float32[batch, 10]; the metric is the accuracy."""
    data = digits.load(seed)
    batches = ts.ShuffledBatches(data.train_images, data.train_labels, size=64)
    test = list(zip(data.test_images.split(150), data.test_labels.split(150), strict=True))
    torch.manual_seed(seed)
    model = DigitsViT(width, depth)
    training = replace(TRAINING, seed=seed)
    return trained("digits_vit", model, batches, test, F.cross_entropy, digits.accuracy, ts.Better.HIGHER, training)
