"""Models of `transformers` on integers: how much is integer, and how far that is from the simulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.passes.compare import difference
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize

from ...small_transformers import EXPERTS
from .lockstep import lockstep

IMAGES: dict[str, tuple[int, ...]] = {"pixel_values": (2, 3, 32, 32)}
TOKENS: dict[str, tuple[int, ...]] = {"input_ids": (2, 8)}
_MLP = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
_EXPERTS = {**EXPERTS, "first_k_dense_replace": 0, "num_key_value_heads": 2}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}, IMAGES,
    ),
    "mobilenet": (
        "MobileNetV2ForImageClassification", "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": 32, "initializer_range": 0.2}, IMAGES,
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", {**_MLP, "image_size": 32, "patch_size": 8}, IMAGES),
    "bert": ("BertModel", "BertConfig", {**_MLP, "vocab_size": 50}, TOKENS),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_MLP, "vocab_size": 50, "num_key_value_heads": 1}, TOKENS),
    "deepseek": ("DeepseekV3ForCausalLM", "DeepseekV3Config", {**_MLP, "vocab_size": 50, **_EXPERTS}, TOKENS),
}  # fmt: skip
FLOAT: dict[str, set[str]] = {
    "resnet": set(), "mobilenet": set(), "vit": set(), "bert": set(),
    "llama": {"_to_copy"},  # positions become floats for the rotary embedding
    "deepseek": {"_to_copy", "topk", "getitem", "scatter", "unsqueeze", "expand", "reshape", "masked_fill", "div"},
}  # fmt: skip
"""What may be float: beside the rotary positions, how experts are chosen."""


def model(name: str) -> tuple[nn.Module, Mapping[str, tuple[int, ...]]]:
    torch.manual_seed(0)
    kind, config, sizes, shapes = MODELS[name]
    net: nn.Module = getattr(tf, kind)(getattr(tf, config)(**sizes))
    return net, shapes


def batch(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tokens = name == "input_ids"
        made[name] = (torch.randint(0, 50, shape, generator=generator) if tokens
                      else torch.randn(shape, generator=generator))  # fmt: skip
        if tokens:
            made["attention_mask"] = torch.ones(shape, dtype=torch.long)
    return made


@pytest.mark.parametrize("name", FLOAT)
def test_each_operator_is_within_a_step_of_the_simulation(name: str) -> None:
    net, shapes = model(name)
    example = batch(shapes, 0)
    program = trace(net.eval(), (), example)
    simulated = Quantize(calibration=[example, batch(shapes, 1)], coverage=Coverage.EVERYTHING)(program)
    integer = LowerToInteger()(simulated)
    found = {str(getattr(i.node.target, "_opname", i.node.target.__name__)) for i in float_islands(integer)}  # type: ignore[union-attr]
    assert found <= FLOAT[name]
    held_out = integer.signature.flatten((), batch(shapes, 2))
    apart = lockstep(simulated, integer, held_out)
    assert max(value.steps for value in apart) <= 1
    assert sum(value.differing for value in apart) <= sum(value.values for value in apart) / 100
    assert difference(simulated.run(held_out), integer.run(held_out)).sqnr > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_whole_sizes(name: str) -> None:
    """ResNet-50 and MobileNetV2 of their default configs at 224 x 224."""
    torch.manual_seed(0)
    kind, config, *_ = MODELS[name]
    net: nn.Module = getattr(tf, kind)(getattr(tf, config)())
    shapes = {"pixel_values": (1, 3, 224, 224)}
    program = trace(net.eval(), (), batch(shapes, 0))
    simulated = Quantize(calibration=[batch(shapes, 0)], coverage=Coverage.EVERYTHING)(program)
    integer = LowerToInteger()(simulated)
    assert not float_islands(integer)
    apart = lockstep(simulated, integer, integer.signature.flatten((), batch(shapes, 2)))
    assert max(value.steps for value in apart) <= 1
    assert sum(value.differing for value in apart) <= sum(value.values for value in apart) / 1e4
