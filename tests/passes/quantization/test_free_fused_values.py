"""A grid that only float operators read is taken away; one that a kernel of bytes reads stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.frontends.torch_export import trace
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_SYMMETRIC
from tersor.passes.compare import difference
from tersor.passes.manager import PassManager
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.free_fused_values import FreeFusedValues
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize

Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def gated(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    result: Tensor = m.b(y * torch.sigmoid(y))
    return result


def attended(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    weights = torch.softmax(torch.matmul(y, y.transpose(-2, -1)) * 0.3, -1)
    result: Tensor = m.b(torch.matmul(weights, y))
    return result


def quantized(body: Body) -> tuple[Program, Program]:
    torch.manual_seed(0)
    batches = [torch.randn(2, 4, 8, 8) for _ in range(2)]
    program = trace(Net(body), (batches[0],))
    options: dict[str, Any] = {"coverage": Coverage.EVERYTHING, "correct_bias": False}
    return program, Quantize(INT8_SYMMETRIC, calibration=batches, **options)(program)


def on_grids(program: Program) -> set[str]:
    """The names of activations that are put on a grid."""
    nodes = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    return {node.args[0].name for node in nodes if program.constant(node.args[0]) is None}


CASES: dict[str, tuple[Body, set[str]]] = {
    "silu": (lambda m, x: m.b(F.silu(m.a(x))), {"conv2d"}),
    "gelu": (lambda m, x: m.b(F.gelu(m.a(x))), {"conv2d"}),
    "written out": (gated, {"conv2d"}),
    "norm": (lambda m, x: m.b(m.norm(m.a(x))), {"conv2d"}),
    "residual": (lambda m, x: m.c(torch.relu(m.b(F.silu(m.a(x))) + x)), {"conv2d"}),
    "read twice": (lambda m, x: m.b(F.silu(y := m.a(x))) + m.c(y), set()),
    "moved": (lambda m, x: m.b(F.gelu(m.a(x).transpose(2, 3))), {"conv2d"}),
    "attention": (attended, {"mul_1"}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_freed(name: str) -> None:
    body, expected = CASES[name]
    floats, before = quantized(body)
    after = PassManager([FreeFusedValues()], progress=False).run(before).program
    freed = on_grids(before) - on_grids(after)
    assert freed == expected, (on_grids(before), on_grids(after))
    image = torch.randn(2, 4, 8, 8)
    exact = [floats(image)]
    assert difference(exact, [after(image)]).sqnr > difference(exact, [before(image)]).sqnr - 1.5


def test_a_gate_that_is_written_out_is_seen() -> None:
    """y * sigmoid(y) reads y from a grid twice, and no reading gains by it."""
    torch.manual_seed(0)
    batches = [torch.randn(2, 4, 8, 8) for _ in range(2)]
    program = trace(Net(gated), (batches[0],))
    before = Calibrate(batches)(InsertFakeQuant(INT8_SYMMETRIC, Coverage.EVERYTHING)(program))
    assert {"conv2d", "sigmoid", "mul"} <= on_grids(before)
    assert on_grids(before) - on_grids(FreeFusedValues()(before)) == {"conv2d", "sigmoid"}


def test_outputs_keep_their_grids() -> None:
    _, before = quantized(lambda m, x: m.a(x))
    assert "conv2d" in on_grids(before)
    assert not FreeFusedValues().run(before.copy()).modified
