"""Models of the transformers library, small: ONNX Runtime computes what the program computes, float and int8."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm

from ..small_transformers import MODELS, built, other_sizes, traced


@pytest.mark.parametrize("name", MODELS)
def test_a_float_model_gives_the_same(name: str, tmp_path: Path) -> None:
    program, inputs = traced(name, dynamic=True), other_sizes(name)
    found = OnnxRuntime(audit=False).emit(program, tmp_path)
    for ours, theirs in zip(program.run(inputs), found.run_flat(inputs), strict=True):
        assert (ours - theirs).abs().max() <= 2e-6 + 2e-5 * ours.abs().max()


LEAST_INTEGER_SHARE = {"resnet": 1.0, "mobilenet": 1.0, "vit": 0.9, "bert": 0.9, "llama": 0.9, "deepseek": 0.5}
"""The rest is attention, and DeepSeek's experts, whose weights are chosen by the data."""


@pytest.mark.parametrize("name", MODELS)
def test_a_quantized_model_runs_in_integer(name: str, tmp_path: Path) -> None:
    program, inputs = traced(name, dynamic=True), other_sizes(name)
    batch = built(name)[1]
    quantized = Calibrate([batch], pair_safe=True)(InsertFakeQuant()(FoldBatchNorm()(program)))
    artifact = OnnxRuntime().emit(quantized, tmp_path)
    assert artifact.report.integer_share >= LEAST_INTEGER_SHARE[name]
    for ours, theirs in zip(quantized.run(inputs), artifact.run_flat(inputs), strict=True):
        # A value near a tie may fall to the other side where floats are summed in another order.
        assert (ours - theirs).abs().max() <= 0.05 * ours.abs().max()
