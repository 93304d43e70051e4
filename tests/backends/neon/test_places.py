"""Where the greatest value stands, as an output: the first of equals, in the type that the program gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.errors import LoweringError

from .lowered import Machines, assert_same_bits, lower, quantized

ISAS = ("dotprod",)


class Found(nn.Module):
    """A convolution to 7 channels and a linear layer to 9 values, and what is made of them."""

    def __init__(self, finish: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.linear, self.finish = nn.Conv2d(3, 7, 3), nn.Linear(7 * 20, 9), finish

    def forward(self, x: Tensor) -> Any:
        pixels = torch.relu(self.conv(x))
        return self.finish(pixels, self.linear(pixels.flatten(1)))


FINISHES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "with logits": lambda pixels, logits: (logits, logits.argmin(1, keepdim=True)),
    "of pixels": lambda pixels, logits: (
        pixels.argmax(1).to(torch.int32).unsqueeze(1),
        pixels.argmax(3),
        torch.argmax(pixels),
        logits.softmax(1).argmax(1),
    ),
}


@pytest.mark.emulated
@pytest.mark.parametrize("name", FINISHES)
def test_places_are_those_of_torch(name: str, machines: Machines, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = torch.randn(1, 3, 6, 7)
    program = quantized(Found(FINISHES[name]), (sample,))
    artifact = lower(program, tmp_path, ISAS)
    assert_same_bits(program, artifact, machines, ISAS, (sample,))
    with torch.no_grad():
        wanted = program.run([sample])
    for found, expected in zip(artifact.on(machines.portable).run_flat([sample]), wanted, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.emulated
def test_the_first_of_equals(machines: Machines, tmp_path: Path) -> None:
    """A channel that is there three times: the same values; batches are run sample by sample."""
    model = Found(lambda pixels, logits: (logits.argmax(1), logits.argmin(1)))
    with torch.no_grad():
        for layer in (model.linear.weight, model.linear.bias):
            layer[3], layer[8] = layer[1], layer[1]
            layer[[0, 2, 4]] = layer[5].clone()
            layer[6:8] = layer[5].clone()
    batch = torch.randn(8, 3, 6, 7)
    program = quantized(model, (batch[:1],))
    artifact = lower(program, tmp_path, ISAS).on(machines.portable)
    with torch.no_grad():
        wanted = [torch.cat(parts) for parts in zip(*(program.run([x[None]]) for x in batch), strict=True)]
    found = artifact.run_flat([batch])
    assert [set(values.tolist()) for values in wanted] == [{0, 1}, {0, 1}]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (lambda pixels, logits: logits.argmax(1).float(), "argmax, whose places can only be an output"),
        (lambda pixels, logits: pixels.argmax(1).transpose(1, 2), "argmax, whose places can only be an output"),
        (lambda pixels, logits: logits.max(1)[1], "argmax(dim)"),
    ],
)
def test_what_computes_with_places_is_refused(finish: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(LoweringError) as error:
        ts.lower(quantized(Found(finish), (torch.randn(1, 3, 6, 7),)), "neon", out=tmp_path / "model")
    assert reason in str(error.value)
    assert not (tmp_path / "model").exists()
