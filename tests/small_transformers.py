"""The architectures that tersor promises to take, small, as `transformers` builds them from a config."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program

TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
"""DeepSeek-V3's, and its low-rank attention."""


def resnet() -> nn.Module:
    config = tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    return tf.ResNetForImageClassification(config)


def mobilenet() -> nn.Module:
    config = tf.MobileNetV2Config(depth_multiplier=0.25, image_size=32, initializer_range=0.2)
    return tf.MobileNetV2ForImageClassification(config)


def vit() -> nn.Module:
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return tf.ViTForImageClassification(config)


def bert() -> nn.Module:
    return tf.BertModel(tf.BertConfig(**TEXT))


def llama() -> nn.Module:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT, num_key_value_heads=1, tie_word_embeddings=True))


def deepseek() -> nn.Module:
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**TEXT, num_key_value_heads=2, **EXPERTS))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet, "mobilenet": mobilenet, "vit": vit, "bert": bert, "llama": llama, "deepseek": deepseek,
}  # fmt: skip
IMAGES = ("resnet", "mobilenet", "vit")
DYNAMIC = {
    "resnet": {"pixel_values": {0: "batch"}},
    "mobilenet": {"pixel_values": {0: "batch"}},
    "llama": {"input_ids": {0: "batch", 1: "length"}},
}


@cache
def built(name: str) -> tuple[Any, dict[str, Tensor]]:
    """The model, with batch norms that do something, and its inputs."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    if name in IMAGES:
        return model.eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}
    inputs = {"input_ids": torch.randint(0, 50, (2, 8))}
    if name == "bert":
        inputs["attention_mask"] = (torch.arange(8) < torch.tensor([[8], [5]])).long()
    return model.eval(), inputs


@cache
def traced(name: str, dynamic: bool = False) -> Program:
    """Its program; dynamic: with the sizes of DYNAMIC, where it has any. Not to be changed: others use it too."""
    model, inputs = built(name)
    return trace(model, (), inputs, DYNAMIC.get(name) if dynamic else None)


def other_sizes(name: str) -> list[Tensor]:
    """Inputs of other sizes than those of the trace, where its sizes are dynamic."""
    inputs = list(built(name)[1].values())
    if name in DYNAMIC:
        inputs = [torch.cat([tensor, tensor[:1]]) for tensor in inputs]
    return [tensor[:, :5] for tensor in inputs] if name == "llama" else inputs
