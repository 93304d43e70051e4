"""Small networks that engines are built of, quantized, and what is independently known of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_SYMMETRIC, SCHEMES
from tersor.passes.quantization.quantize import Quantize


class Mixed(nn.Module):
    """What placement has rules for: residual, concatenation, pools, depthwise, activations, a linear at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.stem(image))), 2)
        x = F.relu6(x + self.point(F.silu(self.depthwise(x))))
        x = F.hardswish(self.down(torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Linears(nn.Module):
    """Two linear layers, wide enough for sparse kernels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


NETWORKS: Mapping[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "mixed": (Mixed, (2, 3, 16, 16), {"image": {0: "batch"}}),
    "linears": (Linears, (4, 64), {}),
}


@cache
def floats(name: str = "mixed") -> Program:
    """The float program."""
    torch.manual_seed(0)
    kind, shape, dynamic = NETWORKS[name]
    return trace(kind().eval(), (torch.randn(shape),), dynamic=dynamic)


@cache
def quantized(name: str = "mixed", scheme: str = "int8_symmetric") -> Program:
    """The same, quantized."""
    torch.manual_seed(0)
    shape = NETWORKS[name][1]
    batches = [torch.randn(shape) for _ in range(2)]
    chosen = INT8_SYMMETRIC if scheme == "int8_symmetric" else SCHEMES[scheme]
    return Quantize(chosen, calibration=batches, pair_safe=False, correct_bias=False)(floats(name))
