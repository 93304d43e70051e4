"""Linears from a grid to floats: ONNX Runtime's operator for them, its file read again, and when it is not used."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.backends.onnxruntime.session import newest_opset
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.stage import Stage
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant


class Layer(nn.Module):
    """Self-attention and a feed-forward part, as encoders have them; one linear is read through a relu and a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.wide, self.narrow, self.plain = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 8, bias=False)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            linear(x).reshape(x.shape[0], x.shape[1], 4, 4).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        ]
        seen = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(x.shape)
        x = self.norm(x + self.out(seen))
        x = x + self.narrow(torch.relu(self.wide(x)))
        result: Tensor = self.plain(nn.functional.gelu(x))
        return result


@cache
def quantized(four_bits: tuple[str, ...] = ()) -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 16)
    program = trace(Layer(), (x,), dynamic={"x": {0: "batch", 1: "length"}})
    return Calibrate([x])(InsertFakeQuant(four_bits=four_bits)(program)), x


def lowered(program: Program, folder: Path) -> tuple[Any, list[str]]:
    artifact = OnnxRuntime().emit(program, folder)
    return artifact, [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]


def test_linears_between_floats_need_no_reshape(tmp_path: Path) -> None:
    program, _ = quantized()
    artifact, operators = lowered(program, tmp_path)
    assert operators.count("MatMulIntegerToFloat") == 6
    assert operators.count("Gemm") == 1, "the one before relu, whose kernel requantizes"
    whole = newest_opset((21, 23)) == 23
    assert operators.count("Attention") == whole
    assert ("Transpose" in operators) is not whole
    for shape in ((4, 6, 16), (1, 3, 16), (2, 9, 16)):
        x = torch.randn(*shape)
        torch.testing.assert_close(artifact.run(x), program(x), rtol=1e-4, atol=1e-4)
    assert {row.precision for row in artifact.report.audit if "linear" in row.operator} == {"int8"}


def test_the_file_is_read_again(tmp_path: Path) -> None:
    program, x = quantized()
    lowered(program, tmp_path / "first")
    again = load_onnx(tmp_path / "first" / "model.onnx").verify()
    assert again.stage is Stage.FAKE_QUANT
    torch.testing.assert_close(again(x), program(x), rtol=1e-5, atol=1e-5)
    assert lowered(again, tmp_path / "second")[1].count("MatMulIntegerToFloat") == 6


def test_four_bits_stay_four_bits_in_the_file(tmp_path: Path) -> None:
    program, x = quantized(("query",))
    artifact, operators = lowered(program, tmp_path)
    assert operators.count("MatMulIntegerToFloat") == 6
    kinds = [tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 1
    torch.testing.assert_close(artifact.run(x), program(x), rtol=1e-4, atol=1e-4)
