"""An ONNX file in, a smaller one out: imported, pruned, quantized, written back.

python -m examples.onnx_to_onnx [OUT] [MODEL.onnx]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import tersor as ts
from tersor.ir.example import example_of


def main(out: str = "build/onnx_to_onnx", model: str | None = None) -> None:
    """Compress a file, or one that is made here where none is named."""
    program = ts.load_onnx(model or make_model(Path(out) / "given"))
    print(program)
    torch.manual_seed(0)
    example = example_of(program)
    batches = [tuple(torch.randn_like(x) if x.is_floating_point() else x for x in example) for _ in range(8)]

    steps = [ts.Canonicalize(), ts.PruneChannels(ts.Macs(0.6)), ts.Quantize(ts.INT8, calibration=batches)]
    result = ts.PassManager(steps).run(program)
    print(result.report)
    artifact = ts.lower(result.program, target="onnxruntime", out=Path(out) / "compressed")
    print(f"{artifact.path}/model.onnx: {artifact.report.files['model.onnx']} bytes")


def make_model(folder: Path) -> Path:
    """A small network as an ONNX file, as another tool would have left it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 10)
    )
    given = ts.trace(model, torch.randn(2, 3, 16, 16), dynamic={"input": {0: "batch"}})
    return ts.lower(given, target="onnxruntime", out=folder).path / "model.onnx"


if __name__ == "__main__":
    main(*sys.argv[1:])
