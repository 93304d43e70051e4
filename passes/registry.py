"""The passes by name, as recipes and the command line write them."""

from __future__ import annotations

from tersor.ir.registry import Registry

from .base import Pass

PASSES: Registry[Pass] = Registry(
    "pass",
    Pass,  # type: ignore[type-abstract]  # looked up, never instantiated
    {
        "bind_dimensions": "tersor.passes.bind_dimensions:BindDimensions",
        "calibrate": "tersor.passes.calibrate:Calibrate",
        "canonicalize": "tersor.passes.canonicalize:Canonicalize",
        "correct_bias": "tersor.passes.correct_bias:CorrectBias",
        "decompose": "tersor.passes.decompose:Decompose",
        "expand_attention": "tersor.passes.expand_attention:ExpandAttention",
        "fold_batch_norm": "tersor.passes.fold_batchnorm:FoldBatchNorm",
        "insert_fake_quant": "tersor.passes.insert_fake_quant:InsertFakeQuant",
        "lower_to_integer": "tersor.passes.lower_to_integer:LowerToInteger",
        "quantize": "tersor.passes.quantize:Quantize",
        "recover_operators": "tersor.passes.recover_operators:RecoverOperators",
        "settle_grids": "tersor.passes.settle_grids:SettleGrids",
    },
    "tersor.passes",
)
