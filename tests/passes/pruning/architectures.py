"""Architectures of `transformers` in small configs, by name: what pruning has to follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from ...small_transformers import EXPERTS

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Make = Callable[[], Case]

TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50, "intermediate_size": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
PATCHES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
BOTH: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
GPT: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip
KV: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}
WIDE: dict[str, Any] = {**KV, "head_dim": 8}


def tokens(*size: int) -> Tensor:
    return torch.randint(3, 50, size)


def image(model: Callable[[], nn.Module], size: int = 32) -> Make:
    return lambda: (model(), (torch.randn(2, 3, size, size),), {})


def text(model: Callable[[], nn.Module]) -> Make:
    return lambda: (model(), (), {"input_ids": tokens(2, 8)})


def pair(model: Callable[[], nn.Module]) -> Make:
    return lambda: (model(), (), {"input_ids": tokens(2, 8), "decoder_input_ids": tokens(2, 6)})


def whisper() -> Case:
    config = tf.WhisperConfig(**BOTH, num_mel_bins=8, max_source_positions=16, max_target_positions=16)
    inputs = {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": tokens(2, 6)}
    return tf.WhisperForConditionalGeneration(config), (), inputs


def clip() -> Case:
    config = tf.CLIPVisionConfig(**PATCHES, projection_dim=16)
    return tf.CLIPVisionModelWithProjection(config), (), {"pixel_values": torch.randn(2, 3, 32, 32)}


def wav2vec2() -> Case:
    config = tf.Wav2Vec2Config(
        **TEXT, conv_dim=[16, 16], conv_stride=[5, 2], conv_kernel=[10, 3], num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return tf.Wav2Vec2ForCTC(config), (torch.randn(2, 400),), {}


def deepseek() -> nn.Module:
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**{**TEXT, "num_key_value_heads": 4}, **EXPERTS))


def distilbert() -> nn.Module:
    config = tf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=50)
    return tf.DistilBertForSequenceClassification(config)


def t5_config() -> Any:
    return tf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)


def opt() -> nn.Module:
    narrow = {**TEXT, "word_embed_proj_dim": 32, "ffn_dim": 64}
    del narrow["intermediate_size"]
    return tf.OPTForCausalLM(tf.OPTConfig(**narrow))


def qwen3_moe() -> nn.Module:
    config = tf.Qwen3MoeConfig(**WIDE, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
    return tf.Qwen3MoeForCausalLM(config)


def swin() -> nn.Module:
    config = tf.SwinConfig(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=32, patch_size=2)
    return tf.SwinForImageClassification(config)


def segformer() -> nn.Module:
    config = tf.SegformerConfig(**STAGES, num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32)
    return tf.SegformerForImageClassification(config)


PROMISED: dict[str, Make] = {
    "resnet": image(lambda: tf.ResNetForImageClassification(tf.ResNetConfig(embedding_size=16, **STAGES))),
    "mobilenet_v2": image(
        lambda: tf.MobileNetV2ForImageClassification(tf.MobileNetV2Config(depth_multiplier=0.35, image_size=32))
    ),
    "vit": image(lambda: tf.ViTForImageClassification(tf.ViTConfig(**PATCHES))),
    "bert": text(lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT))),
    "llama": text(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**KV))),
    "deepseek_v3": text(deepseek),
}
"""Those that the quick tests prune."""

OTHERS: dict[str, Make] = {
    "mobilenet_v1": image(
        lambda: tf.MobileNetV1ForImageClassification(tf.MobileNetV1Config(depth_multiplier=0.25, image_size=32))
    ),
    "regnet": image(
        lambda: tf.RegNetForImageClassification(tf.RegNetConfig(embedding_size=16, groups_width=8, **STAGES))
    ),
    "convnext": image(lambda: tf.ConvNextForImageClassification(tf.ConvNextConfig(**STAGES, image_size=32))),
    "deit": image(lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**PATCHES))),
    "beit": image(lambda: tf.BeitForImageClassification(tf.BeitConfig(**PATCHES))),
    "dinov2": image(lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**PATCHES))),
    "swin": image(swin),
    "segformer": image(segformer, 64),
    "clip_vision": clip,
    "roberta": text(lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**TEXT))),
    "electra": text(lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**TEXT, embedding_size=16))),
    "albert": text(lambda: tf.AlbertForSequenceClassification(tf.AlbertConfig(**TEXT, embedding_size=16))),
    "distilbert": text(distilbert),
    "deberta_v2": text(lambda: tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**TEXT))),
    "gpt2": text(lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT))),
    "gpt_neox": text(lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**TEXT))),
    "gptj": text(lambda: tf.GPTJForCausalLM(tf.GPTJConfig(**GPT, rotary_dim=4))),
    "opt": text(opt),
    "bloom": text(lambda: tf.BloomForCausalLM(tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50))),
    "falcon": text(lambda: tf.FalconForCausalLM(tf.FalconConfig(**TEXT))),
    "llama_multi_query": text(
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT, num_key_value_heads=1, tie_word_embeddings=True))
    ),
    "mistral": text(lambda: tf.MistralForCausalLM(tf.MistralConfig(**KV))),
    "mixtral": text(lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**KV, num_local_experts=4))),
    "qwen2": text(lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**KV))),
    "qwen3": text(lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**WIDE))),
    "qwen3_moe": text(qwen3_moe),
    "gemma": text(lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**WIDE))),
    "gemma2": text(lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**WIDE))),
    "phi": text(lambda: tf.PhiForCausalLM(tf.PhiConfig(**TEXT))),
    "phi3": text(lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**KV))),
    "mamba": text(
        lambda: tf.MambaForCausalLM(tf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50, state_size=4))
    ),
    "t5": pair(lambda: tf.T5ForConditionalGeneration(t5_config())),
    "t5_encoder": text(lambda: tf.T5EncoderModel(t5_config())),
    "bart": pair(lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BOTH))),
    "whisper": whisper,
    "wav2vec2": wav2vec2,
}
"""The others that the slow test prunes at 50 %."""
