"""Small networks that put channels together in ways of their own, each with its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = tuple[nn.Module, tuple[Tensor, ...]]


class Dense(nn.Module):
    """Every layer reads all before it, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8 + 6 * place, 6, 3, padding=1) for place in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * place) for place in range(3))
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            values.append(layer(torch.relu(norm(torch.cat(values, 1)))))
        logits: Tensor = self.head(torch.cat(values, 1).mean((2, 3)))
        return logits


class UNet(nn.Module):
    """Down, up by a transposed convolution and by resizing, skips concatenated and added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.mix, self.side, self.last = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        deep = torch.relu(self.norm(self.deep(torch.relu(self.down(first)))))
        mixed = torch.relu(self.mix(torch.cat([self.up(deep), first], 1)))
        side = F.interpolate(self.side(deep), scale_factor=2.0, mode="bilinear")
        last: Tensor = self.last(mixed + side)
        return last


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are computed, then both are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 8, 1),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1):
            passing, computed = self.stem(x).chunk(2, 1)
            y = torch.cat([passing, self.branch(computed)], 1)
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))
        return logits


class SuperResolution(nn.Module):
    """Channels become pixels, and pixels channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(6, 12, 1)
        self.slope = nn.PReLU(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.a(F.pixel_unshuffle(x, 2)))
        return F.pixel_shuffle(self.c(F.pixel_shuffle(self.b(y), 2)), 2)


class Mixer(nn.Module):
    """Tokens are mixed by layers over the transposed value."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm, self.tokens = nn.LayerNorm(12), nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 16))
        self.last, self.channels = nn.LayerNorm(12), nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = y + self.tokens(self.norm(y).transpose(1, 2)).transpose(1, 2)
        y = y + self.channels(self.last(y))
        logits: Tensor = self.head(y.mean(1))
        return logits


class EinsumAttention(nn.Module):
    """Attention in einsum, with weights that have heads as a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(3, 10, 4) * 0.3) for _ in range(3))
        self.out = nn.Parameter(torch.randn(3, 4, 10) * 0.3)
        self.inner, self.head = nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        q, k, v = (torch.einsum("bld,hdk->bhlk", x, w) for w in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bhlk,bhmk->bhlm", q, k) * 0.5, -1)
        mixed = torch.einsum("bhlm,bhmk,hkd->bld", weights, v, self.out)
        logits: Tensor = self.head(x + mixed)
        return logits


class Excited(nn.Module):
    """Squeeze and excitation, hard activations, and a scale by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))
        self.norm, self.head = nn.InstanceNorm2d(16, affine=True), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.deep(F.relu6(self.stem(x))))
        gate = F.hardsigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.norm(y * gate * self.scale)
        logits: Tensor = self.head(y.amax((2, 3), keepdim=True)).flatten(1)
        return logits


class Tied(nn.Module):
    """One layer called twice, and weights shared between reading and writing."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(20, 12), nn.Linear(12, 12)
        self.norm = nn.RMSNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embedding(x)
        y = y + torch.relu(self.layer(self.norm(y)))
        y = y + torch.relu(self.layer(self.norm(y)))
        return F.linear(y, self.embedding.weight)


class Volumes(nn.Module):
    """Three dimensions, padded channels, a maximum over two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 10, 1)
        self.norm, self.head = nn.BatchNorm3d(10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        shortcut = F.pad(y, (0, 0, 0, 0, 0, 0, 2, 2))
        y = torch.maximum(self.norm(self.b(y)), shortcut)
        logits: Tensor = self.head(F.max_pool3d(y, 2).mean((2, 3, 4)))
        return logits


class Signals(nn.Module):
    """One dimension, gated convolutions, a recurrent layer that pins, and a slice in steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gated = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 12, 3, padding=1)
        self.recurrent = nn.GRU(6, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.gated(torch.tanh(self.a(x))), 1)
        found, _ = self.recurrent(y[:, :, ::2].transpose(1, 2))
        logits: Tensor = self.head(found[:, -1])
        return logits


class Written(nn.Module):
    """Layer norm and attention written out, with variance, powers and a reshape through -1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.qkv, self.out = nn.Linear(5, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        y = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        b, n, _ = y.shape
        q, k, v = self.qkv(y).view(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.mT / 2).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))
        y = (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + 1e-5).rsqrt()
        logits: Tensor = self.head(F.normalize(y, dim=-1))
        return logits


def image(channels: int = 3, size: int = 8) -> tuple[Tensor, ...]:
    return (torch.randn(2, channels, size, size),)


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True)
    model = nn.Sequential(
        nn.Linear(5, 12), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(12, 3)
    )
    return model, (torch.randn(2, 4, 5),)


NETWORKS: dict[str, Callable[[], Case]] = {
    "dense": lambda: (Dense(), image()),
    "unet": lambda: (UNet(), image()),
    "shuffle": lambda: (ShuffleUnit(), image()),
    "super_resolution": lambda: (SuperResolution(), image()),
    "mixer": lambda: (Mixer(), image(size=16)),
    "einsum": lambda: (EinsumAttention(), (torch.randn(2, 4, 6),)),
    "excited": lambda: (Excited(), image()),
    "tied": lambda: (Tied(), (torch.randint(0, 20, (2, 5)),)),
    "volumes": lambda: (Volumes(), (torch.randn(2, 2, 4, 4, 4),)),
    "signals": lambda: (Signals(), (torch.randn(2, 2, 10),)),
    "written": lambda: (Written(), (torch.randn(2, 4, 5),)),
    "encoder": encoder,
}
