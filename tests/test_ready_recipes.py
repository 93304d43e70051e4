"""Every ready recipe runs on a small model of its kind, to an artifact of its target."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.recipe import read_recipe, ready_recipes


class Classifier(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = ((2, width), (width, width), (width, width))
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in sizes])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in sizes])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    x = torch.randn(count, 2, 6, 6, generator=generator) * 0.5
    x[labels == 0, :, ::2] += 1
    x[labels == 1, :, :, ::2] += 1
    return x, labels


X, Y = stripes(96, 0)
HELD_OUT, LABELS = stripes(128, 1)


@lru_cache
def classifier(width: int) -> ts.Program:
    torch.manual_seed(0)
    program = ts.trace(Classifier(width).eval(), X[:1], dynamic={"x": {0: "batch"}})
    options = ts.Training(epochs=10, learning_rate=0.01)
    trained = ts.Finetune(ts.ShuffledBatches(X, Y, size=32), nn.functional.cross_entropy, training=options)
    return ts.PassManager([trained], verify=False, progress=False).run(program).program


def accuracy(program: Any) -> float:
    with torch.no_grad():
        return float((program(HELD_OUT).argmax(1) == LABELS).float().mean())


def follow(name: str, program: ts.Program, **given: Any) -> ts.Program:
    passes = ts.load_recipe(name, teacher=program, **given)
    return ts.PassManager(passes, progress=False).run(program).program


@pytest.mark.parametrize(("name", "width"), [("cnn_tensorrt", 96), ("cnn_neon", 32), ("cnn_fpga", 16)])
def test_classifiers(name: str, width: int, tmp_path: Path) -> None:
    program = classifier(width)
    found = follow(name, program, data=ts.ShuffledBatches(X, Y, size=32))
    target = read_recipe(name)["target"]
    multiple = {"cnn_tensorrt": 32, "cnn_neon": 8, "cnn_fpga": 4}[name]
    weights = [tensor for tensor in found.parameters().values() if tensor.dim() == 4]
    assert all(weight.shape[0] % multiple == 0 for weight in weights)
    assert found.cost().macs < 0.75 * program.cost().macs
    assert accuracy(program) > 0.9
    assert accuracy(found) > accuracy(program) - 0.05
    artifact = ts.lower(found, target, tmp_path)
    assert artifact.report.integer_share > 0.99
    patterns = set(map(str, found.sparsity.values()))
    assert bool(patterns) is (name != "cnn_fpga")


def test_encoder(tmp_path: Path) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 64)
            layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0, activation="gelu")
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(64, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(self.encoder(self.embed(tokens)).mean(1))
            return logits

    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (64, 8))
    labels = (tokens.float().mean(1) > 9.5).long()
    program = ts.trace(Encoder().eval(), tokens[:2], dynamic={"tokens": {0: "batch"}})
    found = follow("encoder_onnxruntime", program, data=[(tokens, labels)])
    assert found.cost().macs < 0.8 * program.cost().macs
    artifact = ts.lower(found, "onnxruntime", tmp_path)
    assert artifact.report.integer_share > 0.8
    assert artifact.run(tokens).shape == (64, 2)


def language_model() -> tuple[ts.Program, list[Any]]:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=128)
    torch.manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 64, (2, 8))} for _ in range(4)]
    return ts.trace(transformers.LlamaForCausalLM(config).eval(), (), batches[0]), batches


def test_language_model(tmp_path: Path) -> None:
    program, batches = language_model()
    found = follow("language_model_weights", program, calibration=batches)
    blocks = found.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BLOCKS)
    assert len(blocks) == 2 * 7
    assert not found.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    assert "lm_head" not in {str(node.args[0].target).split(".")[0] for node in blocks}
    ts.lower(found, "onnxruntime", tmp_path)


def deepseek(query_rank: int | None = 16) -> tuple[ts.Program, list[Any]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.DeepseekV3Config(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=64, moe_intermediate_size=32, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=query_rank, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 50, (2, 8))} for _ in range(6)]
    return ts.trace(transformers.DeepseekV3ForCausalLM(config).eval(), (), batches[0]), batches


def test_mixture_of_experts(tmp_path: Path) -> None:
    program, batches = deepseek()
    found = follow("moe_deepseek", program, calibration=batches)
    before, after = program.tensors(), found.tensors()
    layer = "model.layers.1."
    experts = after[f"{layer}mlp.experts.down_proj"].shape[0]
    assert before[f"{layer}mlp.experts.down_proj"].shape[0] == 8
    assert experts in (4, 6)
    assert after[f"{layer}mlp.gate.weight"].shape[0] == experts
    for attention in (f"model.layers.{place}.self_attn." for place in (0, 1)):
        rank = after[f"{attention}q_a_proj.weight"].shape[0]
        assert rank == after[f"{attention}q_a_layernorm.weight"].shape[0] == 12
        assert after[f"{attention}q_b_proj.weight"].shape[1] == rank
        narrow = after[f"{attention}kv_a_layernorm.weight"].shape[0]
        assert narrow == after[f"{attention}kv_b_proj.weight"].shape[1] == 12
        assert after[f"{attention}kv_a_proj_with_mqa.weight"].shape[0] == narrow + 8, "the rotary part stays"
    quantized = {str(node.args[0].target) for node in
                 found.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BLOCKS)}  # fmt: skip
    assert f"{layer}mlp.experts.down_proj" in quantized
    assert f"{layer}mlp.experts.gate_up_proj" in quantized
    artifact = ts.lower(found, "onnxruntime", tmp_path)
    with torch.no_grad():
        ours, theirs = found(**batches[0]).logits, artifact.run(**batches[0])["logits"]
    assert torch.allclose(ours, theirs, atol=1e-2)


def test_mixture_of_experts_whose_queries_are_not_compressed() -> None:
    program, batches = deepseek(query_rank=None)
    after = follow("moe_deepseek", program, calibration=batches).tensors()
    assert after["model.layers.0.self_attn.kv_a_layernorm.weight"].shape[0] == 12


def test_router_frequency_counts_the_choices_of_the_router() -> None:
    """Oracle: the router's own arithmetic, by hand."""
    torch.manual_seed(0)

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 6, bias=False)
            self.experts = nn.Parameter(torch.randn(6, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            weight, index = self.gate(x).softmax(-1).topk(2, dim=-1)
            every = torch.einsum("tkio,ti->tko", self.experts[index], x)
            result: Tensor = (every * weight[..., None]).sum(1)
            return result

    model = Mixture().eval()
    batches = [torch.randn(16, 8) + 1 for _ in range(3)]
    program = ts.Canonicalize()(ts.trace(model, batches[0]))
    chosen = torch.cat([model.gate(x).topk(2, dim=-1).indices.flatten() for x in batches])
    counts = torch.bincount(chosen, minlength=6)
    cut = ts.PruneChannels(ts.Channels(0.67), ts.RouterFrequency(batches), kinds=(ts.Kind.EXPERTS,))(program)
    kept = counts.argsort(descending=True, stable=True)[:4].sort().values
    assert torch.equal(cut.tensor("experts"), model.experts[kept])
    assert torch.equal(cut.tensor("gate.weight"), model.gate.weight[kept])


def test_each_recipe_that_trains_says_its_target_and_loss() -> None:
    kinds = {"cnn_tensorrt", "cnn_neon", "cnn_fpga", "encoder_onnxruntime", "language_model_weights", "moe_deepseek"}
    assert kinds <= set(ready_recipes())
    for name in kinds:
        assert read_recipe(name)["target"]
        assert ts.load_recipe(name, teacher=nn.Identity())
