"""Programs to save, and files changed as someone who knows the format would change them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program

Document = dict[str, Any]


class Net(nn.Module):
    """Tied weights, several dtypes, infinities, a split, a nested result and sizes that depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.slim = nn.Parameter(torch.randn(8, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False] * 4))
        self.register_buffer("bytes_", torch.arange(-4, 4, dtype=torch.int8))
        self.register_buffer("empty", torch.zeros(0, 8))

    def forward(self, tokens: Tensor, *, scale: float = 2.0) -> dict[str, Any]:
        hidden = self.mix(self.embedding(tokens)) * scale + self.bytes_
        hidden = self.norm(hidden.flatten(0, 1)).view(tokens.shape[0], -1, 8)
        left, right = hidden.split([3, 5], dim=2)
        masked = hidden.masked_fill(self.mask, -math.inf).softmax(-1)
        grown = torch.full((tokens.shape[0] * 2, 3), math.nan, dtype=torch.float64)
        dense = hidden.clone(memory_format=torch.contiguous_format).to(torch.bfloat16) + self.slim
        return {
            "logits": self.head(masked),
            "parts": (left, [right, dense]),
            "grown": grown,
            "e": self.get_buffer("empty") * 2,
        }


@cache
def traced_net() -> Program:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (3, 5))
    return trace(Net().eval(), (tokens,), {"scale": 2.0}, dynamic={"tokens": {0: "batch"}}, name="Net")


def net() -> Program:
    return traced_net().copy()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x).relu()
        return result


@cache
def traced_small() -> Program:
    torch.manual_seed(0)
    return trace(Small(), (torch.randn(2, 3),))


def small() -> Program:
    return traced_small().copy()


def flat(program: Program, tokens: Tensor) -> list[Tensor]:
    return list(program.run([tokens]))


def document_of(path: Path) -> Document:
    with safe_open(path, framework="pt") as file:
        document: Document = json.loads(file.metadata()["tersor"])
    return document


def rewrite(
    path: Path, edit: Callable[[Document], object], tensors: Callable[[dict[str, Tensor]], object] = id
) -> Path:
    """Change a file as someone who knows the format would, with a digest that fits."""
    document, stored = document_of(path), load_file(path)
    edit(document)
    tensors(stored)
    return seal(path, json.dumps(document | {"sha256": "0" * 64}), stored)


def seal(path: Path, text: str, stored: dict[str, Tensor]) -> Path:
    save_file(stored, path, metadata={"tersor": text.replace('": "', '":"', 1)})
    data = path.read_bytes()
    return write(path, data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
