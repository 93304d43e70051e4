"""Every architecture that pruning follows, on ONNX Runtime: the float program, and the INT8 one as it was simulated."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.frontends.torch_export import trace
from tersor.ir.example import example_of
from tersor.ir.program import Program
from tersor.lowering import lower
from tersor.passes.compare import difference
from tersor.passes.quantization.quantize import Quantize

from ..passes.pruning.architectures import OTHERS, PROMISED


@cache
def traced(name: str) -> Program:
    """The program, its matrices drawn so large that activations neither vanish nor grow from layer to layer."""
    torch.manual_seed(0)
    model, args, kwargs = (PROMISED | OTHERS)[name]()
    program = trace(model.eval(), args, kwargs)
    generator = torch.Generator().manual_seed(1)
    drawn = {
        key: torch.randn(tensor.shape, generator=generator) * 1.4 / tensor[0].numel() ** 0.5
        for key, tensor in program.parameters().items()
        if tensor.dim() > 1
    }
    program.set_tensors(drawn)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED | OTHERS)
def test_float_and_int8(name: str, tmp_path: Path) -> None:
    program = traced(name)
    inputs = example_of(program)
    artifact = lower(program, OnnxRuntime(audit=False), tmp_path / "float")
    assert difference(program.run(inputs), artifact.run_flat(inputs)).sqnr > 80
    batch = dict(zip([spec.name for spec in program.signature.inputs], inputs, strict=True))
    quantized = Quantize(calibration=[batch], pair_safe=True)(program)
    artifact = lower(quantized, "onnxruntime", tmp_path / "int8")
    assert artifact.report.integer_share > 0.2
    assert difference(quantized.run(inputs), artifact.run_flat(inputs)).sqnr > 20
