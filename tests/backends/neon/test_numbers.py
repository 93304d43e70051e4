"""Tokens choose rows of a table: the same bits, and a number without a row is an error and no read outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.ir.errors import LoweringError
from tersor.ir.program import Program
from tersor.passes.manager import PassManager
from tersor.passes.quantization.placement import Coverage

from .lowered import Machines, assert_same_bits, lower

WORDS, LENGTH = 30, 13


class Classifier(nn.Module):
    """Words and places, a convolution over them, and one answer for the text."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 11), nn.Embedding(LENGTH + 2, 11)
        self.norm, self.conv, self.linear = nn.LayerNorm(11), nn.Conv1d(11, 9, 3, padding=1), nn.Linear(9, 4)

    def forward(self, tokens: Tensor) -> Any:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        return self.linear(F.relu(self.conv(x.transpose(1, 2))).mean(2))


class Rearranged(Classifier):
    """The same of tokens that are cut, turned around and padded."""

    def forward(self, tokens: Tensor) -> Any:
        return super().forward(F.pad(tokens[:, 2:9].to(torch.int64).flip(1), (1, 2), value=7))


class Compared(Classifier):
    """Computes with tokens."""

    def forward(self, tokens: Tensor) -> Any:
        return super().forward(tokens * (tokens > 3))


def tokens(dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(0, WORDS, (1, LENGTH), dtype=dtype)


def integer(model: nn.Module, dtype: torch.dtype) -> Program:
    batches = [(tokens(dtype),) for _ in range(3)]
    passes = [ts.Quantize(calibration=batches, coverage=Coverage.EVERYTHING, correct_bias=False), ts.LowerToInteger()]
    return PassManager(passes, progress=False).run(ts.trace(model.eval(), batches[0])).program


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("make", "dtype"), [(Classifier, torch.int64), (Rearranged, torch.int32)], ids=["int64", "int32"]
)
def test_a_text_classifier(make: type[nn.Module], dtype: torch.dtype, machines: Machines, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = integer(make(), dtype)
    artifact = lower(program, tmp_path, ("dotprod",))
    sample = tokens(dtype)
    sample[0, 4:6] = torch.tensor([0, WORDS - 1])
    assert_same_bits(program, artifact, machines, ("dotprod",), (sample,))
    for machine in (machines.portable, replace(machines.emulated, cpu="cortex-a76")):
        for wrong in (-1, WORDS, torch.iinfo(dtype).min, torch.iinfo(dtype).max):
            sample[0, 5] = wrong
            with pytest.raises(LoweringError, match="no row"):
                artifact.on(machine).run(sample)


def test_tokens_are_no_numbers_to_compute_with(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"can only choose rows of a table.*test_numbers\.py"):
        ts.lower(integer(Compared(), torch.int64), target="neon", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Chosen(nn.Module):
    """Channels and columns chosen by constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.order = nn.Conv2d(3, 8, 1), nn.Buffer(torch.tensor([3, 1, 1, 0, 7]))

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        columns = y.gather(3, torch.tensor([4, 0, 2]).expand(1, 8, 5, 3))
        return y.index_select(1, self.order), y[:, [3, 1], 2], columns


@pytest.mark.emulated
def test_values_that_constants_choose(machines: Machines, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 5, 5)
    passes = [ts.Quantize(calibration=[x], coverage=Coverage.EVERYTHING), ts.LowerToInteger()]
    program = PassManager(passes, progress=False).run(ts.trace(Chosen().eval(), x)).program
    assert_same_bits(program, lower(program, tmp_path, ("neon",)), machines, ("neon",), (x,))
