"""Real architectures: half of every axis goes, or a random share, and the equality holds."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers as tf

import tersor as ts
from tersor.ir.example import example_of
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.flow import Kind
from tersor.passes.pruning.groups import groups

from .architectures import KV, OTHERS, PROMISED, Case
from .silencing import check


@cache
def traced(name: str) -> ts.Program:
    """The program, with every parameter drawn at random so that none is 0 or 1 as models begin."""
    torch.manual_seed(0)
    program = _trace((PROMISED | OTHERS)[name]())
    generator = torch.Generator().manual_seed(1)
    program.set_tensors(
        {
            key: torch.randn(tensor.shape, generator=generator) * 0.3 + (0.1 if tensor.dim() == 1 else 0)
            for key, tensor in program.parameters().items()
        }
    )
    return program


def _trace(case: Case, **dynamic: dict[int, str]) -> ts.Program:
    model, args, kwargs = case
    return ts.trace(model.eval(), args, kwargs, dynamic=dynamic or None)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", PROMISED)
def test_equality(name: str, seed: int) -> None:
    program = traced(name)
    check(program, example_of(program), seed, 0.5 if seed == 0 else None, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_equality_of_other_architectures(name: str) -> None:
    program = traced(name)
    for seed in range(4):
        check(program, example_of(program), seed, 0.5 if seed == 0 else None, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED | OTHERS)
def test_half_of_the_channels_of_every_architecture(name: str) -> None:
    program = traced(name)
    pruned = ts.PruneChannels(ts.Channels(0.5), ranking=ts.Ranking.LOCAL)(program)
    assert pruned.cost().macs < 0.75 * program.cost().macs
    outputs = pruned.run(example_of(program))
    assert [tensor.shape for tensor in outputs] == [tensor.shape for tensor in program.run(example_of(program))]


def kinds(name: str) -> dict[Kind, set[int]]:
    program = traced(name)
    found: dict[Kind, set[int]] = {}
    for group in groups(program, dimensions(program)):
        found.setdefault(group.kind, set()).add(group.size)
    return found


def test_what_axes_stand_for() -> None:
    llama = kinds("llama")
    assert llama[Kind.HEADS] == {2}, "two key heads, and two queries of each"
    assert llama[Kind.HEAD_DIM] == {4, 8}, "rotary pairs of queries and keys, and values"
    assert llama[Kind.WIDTH] == {64}
    assert llama[Kind.RESIDUAL] == {32}
    assert kinds("deepseek_v3")[Kind.EXPERTS] == {2, 4}, "groups of experts, and experts of a group"
    assert kinds("vit")[Kind.HEADS] == {4}


def test_dynamic_sizes() -> None:
    """Batch and length stay dynamic: sizes computed in the graph are left to be found."""
    model, _, kwargs = PROMISED["llama"]()
    program = ts.trace(model.eval(), (), kwargs, dynamic={"input_ids": {0: "batch", 1: "length"}})
    pruned = check(program, example_of(program), 0, 0.5, rtol=1e-3)
    ids = torch.randint(0, 50, (3, 5))
    assert pruned.run([ids])[0].shape == (3, 5, 50)
    check(program, [ids], 1, rtol=1e-3)


def test_tied_embeddings_stay_tied() -> None:
    torch.manual_seed(0)
    config = tf.LlamaConfig(**KV, tie_word_embeddings=True)
    program = _trace((tf.LlamaForCausalLM(config), (), {"input_ids": torch.randint(0, 50, (2, 8))}))
    pruned = check(program, example_of(program), 0, 0.5, rtol=1e-3)
    assert pruned.tensor("lm_head.weight") is pruned.tensor("model.embed_tokens.weight")
    assert pruned.tensor("lm_head.weight").shape == (50, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: (tf.ResNetForImageClassification(tf.ResNetConfig()), (torch.randn(1, 3, 224, 224),), {}),
        lambda: (tf.MobileNetV2ForImageClassification(tf.MobileNetV2Config()), (torch.randn(1, 3, 224, 224),), {}),
        lambda: (tf.ViTForImageClassification(tf.ViTConfig()), (torch.randn(1, 3, 224, 224),), {}),
        lambda: (tf.BertModel(tf.BertConfig()), (), {"input_ids": torch.randint(0, 1000, (1, 32))}),
    ],
    ids=["resnet50", "mobilenet_v2", "vit_base", "bert_base"],
)
def test_equality_at_full_size(make: object) -> None:
    torch.manual_seed(0)
    program = _trace(make())  # type: ignore[operator]
    check(program, example_of(program), 0, 0.5, rtol=1e-3)
