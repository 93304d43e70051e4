"""Architectures that move values about: joins, splits, shuffles, resizing, vectors for every pixel, causal padding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """One level: down, up by repeating pixels, and a way around."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, width, 3, padding=1)
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(3 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.down(x))
        inner = F.relu(self.inner(F.max_pool2d(wide, 2)))
        joined = torch.cat([wide, F.interpolate(inner, scale_factor=2, mode="nearest")], 1)
        result: Tensor = self.head(F.relu(self.up(joined)))
        return result


class TemporalNet(nn.Module):
    """Causal convolutions, each with twice the dilation of the one before, around them a residual; the last step."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(3 if i == 0 else width, width, 3, dilation=2**i) for i in range(3)])
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            y = F.relu(layer(F.pad(x, (2 * 2**index, 0))))
            x = y if index == 0 else y + x
        result: Tensor = self.head(x[:, :, -1])
        return result


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn (Zhang et al. 2018, arXiv:1707.01083)."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164): half of the channels go around, then a shuffle."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        half, self.splits = channels // 2, stride == 1
        inputs = half if self.splits else channels
        self.main = nn.Sequential(
            nn.Conv2d(inputs, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, stride, 1, groups=half), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip
        self.side = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels), nn.Conv2d(channels, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.splits else (self.side(x), x)
        return shuffled(torch.cat([left, self.main(right)], 1), 2)


class ShuffleNet(nn.Module):
    """A stem and three units."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.units = nn.Sequential(*[ShuffleUnit(width, stride) for stride in (2, 1, 1)])
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.units(F.relu(self.stem(x))).mean([2, 3]))
        return result


class Excited(nn.Module):
    """A block of MobileNetV3 (Howard et al. 2019, arXiv:1905.02244): hardswish, squeeze-and-excitation, a residual."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        inner = 2 * width
        self.stem, self.expand = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, inner, 1)
        self.depth = nn.Conv2d(inner, inner, 5, 1, 2, groups=inner)
        self.squeeze, self.excite = nn.Conv2d(inner, width, 1), nn.Conv2d(width, inner, 1)
        self.project, self.head = nn.Conv2d(inner, width, 1), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.depth(F.hardswish(self.expand(x))))
        weight = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        result: Tensor = self.head(F.hardswish(self.project(y * weight) + x).mean([2, 3]))
        return result


class Mixer(nn.Module):
    """Linear layers over positions, then over channels (Tolstikhin et al. 2021, arXiv:2105.01601)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.first, self.second = nn.Linear(9, 12), nn.Linear(12, 9)
        self.channels, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2)
        y = (y + self.second(F.gelu(self.first(y)))).transpose(1, 2)
        y = y + self.channels(y)
        result: Tensor = self.head(y.mean(1))
        return result


class OddChannels(nn.Module):
    """Numbers of channels that nothing divides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 13, 3, padding=1), nn.Conv2d(13, 7, 3, padding=1)
        self.third, self.head = nn.Conv2d(7, 13, 1), nn.Linear(13, 11)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        z = self.third(F.relu(self.second(y))) + y
        result: Tensor = self.head(F.relu(z).mean([2, 3]))
        return result


class Grouped(nn.Module):
    """Groups of several channels, and filters that share one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 12, 3, padding=1, groups=3), nn.Conv2d(12, 12, 3, 2, 1, groups=4)
        self.third, self.head = nn.Conv2d(12, 24, 3, 1, 1, groups=12), nn.Linear(24 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.third(F.relu(self.second(F.relu(self.first(x))))))
        result: Tensor = self.head(y.flatten(1))
        return result


class Moves(nn.Module):
    """Every move of values there is: strides and pads of slices, flips, rolls, gates, joins along each dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.focus, self.gated = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.wide, self.tall, self.offset = (
            nn.Conv2d(4, 2, 3),
            nn.Conv2d(4, 2, 3),
            nn.Parameter(torch.randn(1, 4, 1, 1)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        left, right = self.focus(torch.cat(parts, 1)).split([4, 4], 1)
        y = left * torch.sigmoid(right) + self.offset
        padded = self.gated(F.pad(y, (0, 1, 2, 0)))
        joins = self.wide(torch.cat([y, y.flip(3)], 3)), self.tall(torch.cat([y, y[:, :, :2]], 2).roll(1, 3))
        return padded, *joins, F.pixel_shuffle(y, 2), y[:, 1:3]


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resized": (UNet, (1, 1, 8, 12)),
    "temporal": (TemporalNet, (1, 3, 20)),
    "shuffled": (ShuffleNet, (1, 3, 16, 16)),
    "excited": (Excited, (1, 3, 12, 12)),
    "mixed along positions": (Mixer, (1, 3, 12, 12)),
    "odd channels": (OddChannels, (1, 3, 9, 7)),
    "grouped": (Grouped, (1, 6, 8, 8)),
    "moved": (Moves, (1, 3, 8, 8)),
}
"""Their makers, and the shape of their input."""
