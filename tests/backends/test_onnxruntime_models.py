"""Models of the transformers library, small: ONNX Runtime computes what the program computes, float and int8."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm

TEXT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
Case = tuple[Any, tuple[Any, ...], dict[str, Any], dict[str, Any]]
Dynamic = {"input_ids": {0: "batch", 1: "length"}}


def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 8))


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def resnet() -> Case:
    config = tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    return tf.ResNetForImageClassification(config), (image(),), {}, {"pixel_values": {0: "batch"}}


def mobilenet() -> Case:
    config = tf.MobileNetV2Config(depth_multiplier=0.25, image_size=32, initializer_range=0.2)
    return tf.MobileNetV2ForImageClassification(config), (image(),), {}, {"pixel_values": {0: "batch"}}


def vit() -> Case:
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return tf.ViTForImageClassification(config), (image(),), {}, {}


def bert() -> Case:
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    model = tf.BertModel(tf.BertConfig(**TEXT, intermediate_size=64))
    return model, (), {"input_ids": tokens(), "attention_mask": mask}, {}


def llama() -> Case:
    config = tf.LlamaConfig(**TEXT, num_key_value_heads=1, intermediate_size=64)
    return tf.LlamaForCausalLM(config), (), {"input_ids": tokens()}, Dynamic


def deepseek() -> Case:
    config = tf.DeepseekV3Config(
        **TEXT, num_key_value_heads=2, intermediate_size=64, moe_intermediate_size=16, n_routed_experts=8, n_group=2,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    return tf.DeepseekV3ForCausalLM(config), (), {"input_ids": tokens()}, {}


MODELS = {"resnet": resnet, "mobilenet": mobilenet, "vit": vit, "bert": bert, "llama": llama, "deepseek": deepseek}


@cache
def traced(name: str) -> tuple[Program, list[Tensor]]:
    torch.manual_seed(0)
    model, args, kwargs, dynamic = MODELS[name]()
    program = trace(model, args, kwargs, dynamic)
    inputs = program.signature.flatten(args, kwargs)
    if dynamic:  # other sizes than those of the trace
        inputs = [torch.cat([tensor, tensor[:1]]) for tensor in inputs]
    if dynamic is Dynamic:
        inputs = [tensor[:, :5] for tensor in inputs]
    return program, inputs


@pytest.mark.parametrize("name", MODELS)
def test_a_float_model_gives_the_same(name: str, tmp_path: Path) -> None:
    program, inputs = traced(name)
    found = OnnxRuntime(audit=False).emit(program, tmp_path)
    for ours, theirs in zip(program.run(inputs), found.run_flat(inputs), strict=True):
        assert (ours - theirs).abs().max() <= 2e-6 + 2e-5 * ours.abs().max()


LEAST_INTEGER_SHARE = {"resnet": 1.0, "mobilenet": 1.0, "vit": 0.9, "bert": 0.9, "llama": 0.9, "deepseek": 0.5}
"""The rest is attention, and DeepSeek's experts, whose weights are chosen by the data."""


@pytest.mark.parametrize("name", MODELS)
def test_a_quantized_model_runs_in_integer(name: str, tmp_path: Path) -> None:
    program, inputs = traced(name)
    example = program.example
    assert example is not None
    batch = dict(zip([spec.name for spec in program.signature.inputs], example, strict=True))
    quantized = Calibrate([batch], pair_safe=True)(InsertFakeQuant()(FoldBatchNorm()(program)))
    artifact = OnnxRuntime().emit(quantized, tmp_path)
    assert artifact.report.integer_share >= LEAST_INTEGER_SHARE[name]
    for ours, theirs in zip(quantized.run(inputs), artifact.run_flat(inputs), strict=True):
        # A value near a tie may fall to the other side where floats are summed in another order.
        assert (ours - theirs).abs().max() <= 0.05 * ours.abs().max()
