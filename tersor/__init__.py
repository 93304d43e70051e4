"""tersor: a compiler for model compression.

import tersor as ts

program = ts.trace(model, (example,))
result = ts.PassManager([ts.Quantize(ts.INT8, calibration=batches)]).run(program)
artifact = ts.lower(result.program, target="onnxruntime", out="build/")
artifact.run(example)
"""

from __future__ import annotations

from tersor.backends.base import Artifact, AuditRow, Backend, LoweringReport, Unsupported
from tersor.backends.manifest import read_manifest, write_manifest
from tersor.frontends.torch_export import trace
from tersor.ir.errors import TersorError
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, INT8_PER_TENSOR, INT8_SYMMETRIC, W4A8, Observer, QuantType, Scheme
from tersor.ir.signature import Signature
from tersor.ir.sparsity import NM, Block, Unstructured
from tersor.ir.stage import Stage
from tersor.passes.base import Pass, PassResult, Promise
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.manager import PassManager
from tersor.passes.processes import join_processes
from tersor.passes.pruning.criteria import (
    ActivationVariance,
    BatchNormScale,
    Criterion,
    Fisher,
    GeometricMedian,
    Magnitude,
    Random,
    Taylor,
)
from tersor.passes.pruning.flow import Kind
from tersor.passes.pruning.gradually import Gradually, Pace
from tersor.passes.pruning.groups import Group
from tersor.passes.pruning.prune_channels import PruneChannels, Ranking
from tersor.passes.pruning.remove_blocks import BlockCriterion, BlockInfluence, RemoveBlocks
from tersor.passes.pruning.router_frequency import RouterFrequency
from tersor.passes.pruning.targets import Bytes, Channels, Latency, Macs, Parameters
from tersor.passes.quantization.apply_precision import ApplyPrecision
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.precision_plan import PrecisionPlan
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.quantize_dynamic import QuantizeDynamic
from tersor.passes.quantization.quantize_weights import QuantizeWeights
from tersor.passes.quantization.snap_scales import SnapScales
from tersor.passes.report import PipelineResult, Report
from tersor.passes.rewriting.decompose import Decompose
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm
from tersor.passes.rewriting.rewrite import Rewrite
from tersor.passes.sparsity.allocation import BySensitivity, ErdosRenyiKernel, Uniform
from tersor.passes.sparsity.criteria import SparseGPT, Wanda, WeightCriterion, WeightGradient, WeightMagnitude
from tersor.passes.sparsity.permute_channels import PermuteChannels
from tersor.passes.sparsity.regrow import Regrow
from tersor.passes.sparsity.sparsify import Sparsify
from tersor.passes.training.batches import ShuffledBatches
from tersor.passes.training.born_again import BornAgain
from tersor.passes.training.distill import Distill, Distillation
from tersor.passes.training.distill_data_free import DistillDataFree, Source
from tersor.passes.training.events import At
from tersor.passes.training.features import Pair, suggest_pairs
from tersor.passes.training.finetune import Finetune
from tersor.passes.training.options import Better, Optimizer, Precision, Schedule, Training
from tersor.passes.training.train_quantized import BatchNorm, Ranges, TrainQuantized

from .analysis import Analysis, analyze
from .compression.budget import Budget
from .compression.compress import compress
from .compression.limits import BudgetError
from .latency import latency_table
from .lowering import load, load_onnx, lower
from .precision_search import LayerLatency, WeightBytes, search_precision
from .recipe import load_recipe
from .recipe_text import save_recipe
from .sweeps.settings import Grid
from .sweeps.sweep import sweep
from .sweeps.table import Sweep

__version__ = "0.1.0"

__all__ = [
    "INT4",
    "INT8",
    "INT8_PER_TENSOR",
    "INT8_SYMMETRIC",
    "NM",
    "W4A8",
    "ActivationVariance",
    "Analysis",
    "ApplyPrecision",
    "Artifact",
    "At",
    "AuditRow",
    "Backend",
    "BatchNorm",
    "BatchNormScale",
    "Better",
    "Block",
    "BlockCriterion",
    "BlockInfluence",
    "BornAgain",
    "Budget",
    "BudgetError",
    "BySensitivity",
    "Bytes",
    "Calibrate",
    "Canonicalize",
    "Channels",
    "Coverage",
    "Criterion",
    "Decompose",
    "Distill",
    "DistillDataFree",
    "Distillation",
    "ErdosRenyiKernel",
    "Finetune",
    "Fisher",
    "FoldBatchNorm",
    "GeometricMedian",
    "Gradually",
    "Grid",
    "Group",
    "InsertFakeQuant",
    "Kind",
    "Latency",
    "LayerLatency",
    "LowerToInteger",
    "LoweringReport",
    "Macs",
    "Magnitude",
    "Observer",
    "Optimizer",
    "Pace",
    "Pair",
    "Parameters",
    "Pass",
    "PassManager",
    "PassResult",
    "PermuteChannels",
    "PipelineResult",
    "Precision",
    "PrecisionPlan",
    "Program",
    "Promise",
    "PruneChannels",
    "QuantType",
    "Quantize",
    "QuantizeDynamic",
    "QuantizeWeights",
    "Random",
    "Ranges",
    "Ranking",
    "Regrow",
    "RemoveBlocks",
    "Report",
    "Rewrite",
    "RouterFrequency",
    "Schedule",
    "Scheme",
    "ShuffledBatches",
    "Signature",
    "SnapScales",
    "Source",
    "SparseGPT",
    "Sparsify",
    "Stage",
    "Sweep",
    "Taylor",
    "TersorError",
    "TrainQuantized",
    "Training",
    "Uniform",
    "Unstructured",
    "Unsupported",
    "Wanda",
    "WeightBytes",
    "WeightCriterion",
    "WeightGradient",
    "WeightMagnitude",
    "analyze",
    "compress",
    "join_processes",
    "latency_table",
    "load",
    "load_onnx",
    "load_recipe",
    "lower",
    "read_manifest",
    "save_recipe",
    "search_precision",
    "suggest_pairs",
    "sweep",
    "trace",
    "write_manifest",
]
