"""The passes by name, as recipes and the command line write them."""

from __future__ import annotations

from tersor.ir.registry import Registry

from .base import Pass

PASSES: Registry[Pass] = Registry(
    "pass",
    Pass,  # type: ignore[type-abstract]  # looked up, never instantiated
    {
        "apply_precision": "tersor.passes.quantization.apply_precision:ApplyPrecision",
        "awq": "tersor.passes.quantization.awq:AWQ",
        "bind_dimensions": "tersor.passes.rewriting.bind_dimensions:BindDimensions",
        "born_again": "tersor.passes.training.born_again:BornAgain",
        "calibrate": "tersor.passes.quantization.calibrate:Calibrate",
        "canonicalize": "tersor.passes.canonical.canonicalize:Canonicalize",
        "convolve_batch_norm": "tersor.passes.rewriting.convolve_batchnorm:ConvolveBatchNorm",
        "correct_bias": "tersor.passes.quantization.correct_bias:CorrectBias",
        "decompose": "tersor.passes.rewriting.decompose:Decompose",
        "distill": "tersor.passes.training.distill:Distill",
        "distill_data_free": "tersor.passes.training.distill_data_free:DistillDataFree",
        "equalize_layers": "tersor.passes.quantization.equalize_layers:EqualizeLayers",
        "expand_attention": "tersor.passes.rewriting.expand_attention:ExpandAttention",
        "explain_choices": "tersor.passes.quantization.explain_choices:ExplainChoices",
        "finetune": "tersor.passes.training.finetune:Finetune",
        "fold_batch_norm": "tersor.passes.rewriting.fold_batchnorm:FoldBatchNorm",
        "fold_pads": "tersor.passes.streamlining.fold_pads:FoldPads",
        "free_fused_values": "tersor.passes.quantization.free_fused_values:FreeFusedValues",
        "fuse_lookups": "tersor.passes.streamlining.fuse_lookups:FuseLookups",
        "gptq": "tersor.passes.quantization.gptq:GPTQ",
        "gradually": "tersor.passes.pruning.gradually:Gradually",
        "insert_dynamic_quant": "tersor.passes.quantization.insert_dynamic_quant:InsertDynamicQuant",
        "insert_fake_quant": "tersor.passes.quantization.insert_fake_quant:InsertFakeQuant",
        "insert_weight_blocks": "tersor.passes.quantization.insert_weight_blocks:InsertWeightBlocks",
        "learn_rounding": "tersor.passes.quantization.learn_rounding:LearnRounding",
        "lower_to_integer": "tersor.passes.integer.lower_to_integer:LowerToInteger",
        "permute_channels": "tersor.passes.sparsity.permute_channels:PermuteChannels",
        "prune_channels": "tersor.passes.pruning.prune_channels:PruneChannels",
        "quantize": "tersor.passes.quantization.quantize:Quantize",
        "quantize_dynamic": "tersor.passes.quantization.quantize_dynamic:QuantizeDynamic",
        "quantize_weights": "tersor.passes.quantization.quantize_weights:QuantizeWeights",
        "recover_operators": "tersor.passes.canonical.recover_operators:RecoverOperators",
        "regrow": "tersor.passes.sparsity.regrow:Regrow",
        "remove_blocks": "tersor.passes.pruning.remove_blocks:RemoveBlocks",
        "settle_grids": "tersor.passes.quantization.settle_grids:SettleGrids",
        "share_residual_grids": "tersor.passes.quantization.share_residual_grids:ShareResidualGrids",
        "smooth_quant": "tersor.passes.quantization.smooth_quant:SmoothQuant",
        "snap_scales": "tersor.passes.quantization.snap_scales:SnapScales",
        "sparsify": "tersor.passes.sparsity.sparsify:Sparsify",
        "split_linears": "tersor.passes.rewriting.split_linears:SplitLinears",
        "symmetrize_grids": "tersor.passes.quantization.symmetrize_grids:SymmetrizeGrids",
        "tighten_grids": "tersor.passes.streamlining.tighten_grids:TightenGrids",
        "train_quantized": "tersor.passes.training.train_quantized:TrainQuantized",
        "unify_joined_grids": "tersor.passes.quantization.unify_joined_grids:UnifyJoinedGrids",
    },
    "tersor.passes",
)
