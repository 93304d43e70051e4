"""Convolutions over three dimensions: in integer on ONNX Runtime, and refused where there is no kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.ir.errors import LoweringError
from tersor.passes.compare import difference


def volumes() -> tuple[ts.Program, list[torch.Tensor]]:
    """Two convolutions over volumes, the first with a batch norm and a relu."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 3)).eval()
    batches = [torch.randn(1, 2, 6, 6, 6) for _ in range(3)]
    return ts.trace(model, batches[0]), batches


def test_onnx_runtime_convolves_volumes_in_integer(tmp_path: Path) -> None:
    program, batches = volumes()
    quantized = ts.PassManager([ts.Quantize(calibration=batches)]).run(program).program
    artifact = ts.lower(quantized, out=tmp_path)
    assert artifact.report.integer_share == 1
    with torch.no_grad():
        assert difference([quantized(batches[1])], [artifact.run(batches[1])]).sqnr > 60
        assert difference([program(batches[1])], [artifact.run(batches[1])]).sqnr > 30


@pytest.mark.parametrize(("target", "reason"), [("neon", "three dimensions"), ("hls", "two dimensions")])
def test_targets_without_such_a_kernel_refuse(target: str, reason: str, tmp_path: Path) -> None:
    program, batches = volumes()
    with pytest.raises(LoweringError, match=reason):
        ts.compress(program, target=target, calibration=batches, out=tmp_path)
    assert not any(tmp_path.iterdir())
