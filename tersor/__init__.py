"""tersor: a compiler for model compression.

import tersor as ts

program = ts.trace(model, (example,))
result = ts.PassManager([ts.Quantize(ts.INT8, calibration=batches)]).run(program)
artifact = ts.lower(result.program, target="onnxruntime", out="build/")
artifact.run(example)
"""

from __future__ import annotations

from tersor.backends.base import Artifact, Backend, Unsupported
from tersor.frontends.torch_export import trace
from tersor.ir.errors import TersorError
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, INT8_PER_TENSOR, INT8_SYMMETRIC, W4A8, Observer, QuantType, Scheme
from tersor.ir.stage import Stage
from tersor.passes.base import Pass, PassResult, Promise
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.manager import PassManager
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.report import PipelineResult, Report
from tersor.passes.rewriting.decompose import Decompose
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm
from tersor.passes.rewriting.rewrite import Rewrite
from tersor.passes.training.batches import ShuffledBatches
from tersor.passes.training.finetune import Finetune
from tersor.passes.training.options import Better, Optimizer, Precision, Schedule, Training

from .lowering import compress, load, load_onnx, lower

__version__ = "0.1.0"

__all__ = [
    "INT4",
    "INT8",
    "INT8_PER_TENSOR",
    "INT8_SYMMETRIC",
    "W4A8",
    "Artifact",
    "Backend",
    "Better",
    "Calibrate",
    "Canonicalize",
    "Coverage",
    "Decompose",
    "Finetune",
    "FoldBatchNorm",
    "InsertFakeQuant",
    "Observer",
    "Optimizer",
    "Pass",
    "PassManager",
    "PassResult",
    "PipelineResult",
    "Precision",
    "Program",
    "Promise",
    "QuantType",
    "Quantize",
    "Report",
    "Rewrite",
    "Schedule",
    "Scheme",
    "ShuffledBatches",
    "Stage",
    "TersorError",
    "Training",
    "Unsupported",
    "compress",
    "load",
    "load_onnx",
    "lower",
    "trace",
]
