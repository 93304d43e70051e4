"""Operators without a rule are lowered as what torch defines them by, or computed where they are constant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.backends.onnx.registry import RULES
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.frontends.torch_export import trace
from tersor.ir.errors import LoweringError
from tersor.lowering import lower

aten = torch.ops.aten


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        torch.manual_seed(0)
        self.cell, self.gru = nn.LSTMCell(4, 6), nn.GRUCell(4, 6)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(self, x, y)


DEFINED: dict[str, Callable[..., Any]] = {
    "glu": lambda m, x, y: F.glu(x),
    "lstm_cell": lambda m, x, y: m.cell(y, m.cell(x)),
    "gru_cell": lambda m, x, y: m.gru(y, m.gru(x)),
    "cosine_similarity": lambda m, x, y: F.cosine_similarity(x, y),
    "pairwise_distance": lambda m, x, y: F.pairwise_distance(x, y),
    "var_mean": lambda m, x, y: torch.var_mean(x, 1),
    "addcmul": lambda m, x, y: torch.addcmul(x, x, y, value=0.5),
    "lerp": lambda m, x, y: torch.lerp(x, y, 0.3),
    "xlogy": lambda m, x, y: torch.xlogy(x.abs(), y.abs()),
    "logaddexp": lambda m, x, y: torch.logaddexp(x, y),
    "hardshrink": lambda m, x, y: F.hardshrink(x),
    "softshrink": lambda m, x, y: F.softshrink(x),
    "nan_to_num": lambda m, x, y: torch.nan_to_num(x),
    "cdist": lambda m, x, y: torch.cdist(x, y),
}
CONSTANT: dict[str, Callable[..., Any]] = {
    "meshgrid": lambda m, x, y: x + torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")[1],
    "linspace": lambda m, x, y: x * torch.linspace(0, 1, 4),
    "eye": lambda m, x, y: x @ torch.eye(4),
}


@pytest.mark.parametrize("name", DEFINED | CONSTANT)
def test_operators_that_onnx_lacks(name: str, tmp_path: Path) -> None:
    model = Function((DEFINED | CONSTANT)[name]).eval()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    program = trace(model, (x, y))
    artifact = lower(program, OnnxRuntime(audit=False), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(artifact.run(x, y), model(x, y), rtol=1e-5, atol=1e-6)


def test_the_history_says_what_was_written_otherwise() -> None:
    program = trace(Function(DEFINED["glu"]), (torch.randn(3, 4), torch.randn(3, 4)))
    assert program.graph.find_nodes(op="call_function", target=aten.glu.default)
    prepared = OnnxRuntime().prepare(program)
    assert prepared.history[-1].notes == ("aten.glu decomposed: 1",)
    assert program.graph.find_nodes(op="call_function", target=aten.glu.default), "the program given stays"


def test_what_cannot_be_written_otherwise_is_refused_with_all_its_nodes() -> None:
    program = trace(Function(lambda m, x, y: (torch.median(x), F.glu(y))), (torch.randn(3, 4), torch.randn(3, 4)))
    with pytest.raises(LoweringError, match="does not take 1 nodes") as caught:
        OnnxRuntime().prepare(program)
    assert "aten.median" in str(caught.value)


def test_an_operator_that_is_known_and_refused_is_not_written_otherwise() -> None:
    program = trace(nn.BatchNorm1d(4), torch.randn(3, 4)).train()
    assert aten.batch_norm.default in RULES
    with pytest.raises(LoweringError, match="train"):
        OnnxRuntime().prepare(program)
