"""The architectures that tersor promises to take, as `transformers` builds them from a config."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program

TEXT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
Case = tuple[Any, tuple[Any, ...], dict[str, Any]]


def tokens(*size: int) -> torch.Tensor:
    return torch.randint(0, 50, size)


def resnet() -> Case:
    config = tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    return tf.ResNetForImageClassification(config), (torch.randn(2, 3, 32, 32),), {}


def mobilenet() -> Case:
    config = tf.MobileNetV2Config(depth_multiplier=0.25, image_size=32)
    return tf.MobileNetV2ForImageClassification(config), (torch.randn(2, 3, 32, 32),), {}


def vit() -> Case:
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return tf.ViTForImageClassification(config), (torch.randn(2, 3, 32, 32),), {}


def bert() -> Case:
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    return (
        tf.BertModel(tf.BertConfig(**TEXT, intermediate_size=64)),
        (),
        {"input_ids": tokens(2, 8), "attention_mask": mask},
    )


def llama() -> Case:
    config = tf.LlamaConfig(**TEXT, num_key_value_heads=1, intermediate_size=64, tie_word_embeddings=True)
    return tf.LlamaForCausalLM(config), (), {"input_ids": tokens(2, 8)}


def deepseek() -> Case:
    config = tf.DeepseekV3Config(
        **TEXT, num_key_value_heads=2, intermediate_size=64, moe_intermediate_size=16, n_routed_experts=8, n_group=2,
        topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    return tf.DeepseekV3ForCausalLM(config), (), {"input_ids": tokens(2, 8)}


MODELS = {"resnet": resnet, "mobilenet": mobilenet, "vit": vit, "bert": bert, "llama": llama, "deepseek": deepseek}


@cache
def traced(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any], Program]:
    model, args, kwargs = MODELS[name]()
    dynamic = {"input_ids": {0: "batch", 1: "length"}} if name == "llama" else None
    return model, args, kwargs, trace(model, args, kwargs, dynamic)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_eager(name: str) -> None:
    model, args, kwargs, program = traced(name)
    program.verify()
    with torch.no_grad():
        expected = model.eval()(*args, **kwargs, **({"use_cache": False} if kwargs else {}))
        found = program(*args, **kwargs)
    assert type(found) is type(expected)
    assert list(found.keys()) == list(expected.keys())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_deepseek_keeps_its_experts_setting_and_the_history_says_what_was_traced() -> None:
    model, _, _, program = traced("deepseek")
    assert model.config._experts_implementation == "grouped_mm"
    assert any("batched_mm" in note for note in program.history[0].notes)


def test_llama_takes_other_sizes_keeps_tied_embeddings_and_says_that_its_cache_is_left_out() -> None:
    model, _, _, program = traced("llama")
    assert model.config.use_cache
    assert any("use_cache=False" in note for note in program.history[0].notes)
    assert program.tensor("model.embed_tokens.weight") is program.tensor("lm_head.weight")
    more = {"input_ids": tokens(3, 5)}
    with torch.no_grad():
        torch.testing.assert_close(program(**more).logits, model.eval()(**more).logits, rtol=1e-4, atol=1e-5)
