"""Weights in blocks and dynamic quantization on ONNX Runtime, against the program and against the packed bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import tersor as ts
from tersor.backends.onnx.builder import OnnxOptions
from tersor.backends.onnx.emit import emit_model
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.frontends.onnx.load import load_onnx
from tersor.passes.compare import difference


class Tied(nn.Module):
    """An embedding whose table is the last linear's weight, as in language models; odd sizes, more than two dims."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 72)
        self.middle = nn.Linear(72, 72)
        self.last = nn.Linear(72, 40, bias=False)
        self.last.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.middle(self.table(tokens))))
        return y


def tied() -> tuple[ts.Program, Tensor]:
    torch.manual_seed(0)
    tokens = torch.randint(0, 40, (3, 7))
    return ts.trace(Tied().eval(), (tokens,), dynamic={"tokens": {0: "batch"}}), tokens


def operators(folder: Path) -> list[str]:
    return [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_onnx_runtime_computes_what_the_program_computes(
    bits: int, block: int, symmetric: bool, tmp_path: Path
) -> None:
    program, tokens = tied()
    quantized = ts.PassManager([ts.QuantizeWeights(bits, block, symmetric)]).run(program).program
    artifact = ts.lower(quantized, out=tmp_path)
    found = operators(tmp_path)
    assert found.count("MatMulNBits") == 2
    assert found.count("GatherBlockQuantized") == 1
    with torch.no_grad():
        expected = quantized(tokens)
    assert torch.allclose(artifact.run(tokens), expected, atol=1e-4)
    assert {row.precision for row in artifact.report.audit if row.operator == "aten.linear"} == {f"w{bits}"}


def test_four_bits_take_four_bits_in_the_file(tmp_path: Path) -> None:
    model = nn.Linear(512, 512, bias=False)
    program = ts.trace(model, (torch.randn(2, 512),))
    sizes = {}
    for bits in (4, 8):
        quantized = ts.PassManager([ts.QuantizeWeights(bits, 128)]).run(program).program
        sizes[bits] = sum(ts.lower(quantized, out=tmp_path / str(bits)).report.files.values())
    scales = 512 * 4 * 4
    for bits, size in sizes.items():
        assert 512 * 512 * bits / 8 + scales <= size < 512 * 512 * bits / 8 + scales + 2048


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_standard_form_is_what_onnx_defines(symmetric: bool) -> None:
    """Without operators of ONNX Runtime's own: blocked DequantizeLinear, by ONNX's reference evaluator."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(2, 64)
    program = ts.trace(model, (x,))
    quantized = ts.PassManager([ts.QuantizeWeights(symmetric=symmetric)]).run(program).program
    proto = emit_model(quantized, OnnxOptions())
    assert {node.domain for node in proto.graph.node} == {""}
    assert any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
    stored = {t.data_type for t in proto.graph.initializer}
    assert onnx.TensorProto.INT4 in stored
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert np.allclose(found, quantized(x).numpy(), atol=1e-5)


def test_experts_of_a_mixture_are_read_in_four_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 16, "vocab_size": 100,
        "max_position_embeddings": 64, "use_cache": False,
    }  # fmt: skip
    model = nn.Module.eval(DeepseekV3ForCausalLM(DeepseekV3Config(**sizes)))
    inputs: dict[str, Any] = {"input_ids": torch.randint(0, 100, (2, 8)), "use_cache": False}
    program = ts.trace(model, (), inputs)
    quantized = ts.PassManager([ts.QuantizeWeights(bits=4)]).run(program).program
    text = str(quantized)
    for name in ("gate_up_proj", "down_proj"):
        assert f"tersor.fake_quantize_blocks(@model.layers.1.mlp.experts.{name}," in text
    artifact = ts.lower(quantized, out=tmp_path)
    assert operators(tmp_path).count("GatherBlockQuantized") == 2
    with torch.no_grad():
        expected = quantized(**inputs).logits
    assert difference([expected], [artifact.run(**inputs).logits]).sqnr > 60
    with torch.no_grad():
        assert torch.allclose(load_onnx(tmp_path / "model.onnx").run([inputs["input_ids"]])[0], expected, atol=1e-5)
    experts = program.tensor("model.layers.1.mlp.experts.gate_up_proj").numel()
    assert quantized.cost().parameter_bytes < program.cost().parameter_bytes - 3 * experts


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_file_is_read_again(bits: int, symmetric: bool, tmp_path: Path) -> None:
    program, tokens = tied()
    quantized = ts.PassManager([ts.QuantizeWeights(bits, 32, symmetric)]).run(program).program
    artifact = ts.lower(quantized, out=tmp_path / "first")
    again = load_onnx(tmp_path / "first" / "model.onnx").verify()
    assert str(again).count("tersor.fake_quantize_blocks") == 3, "the table, as it is chosen from, and two matrices"
    with torch.no_grad():
        assert torch.allclose(again(tokens), quantized(tokens), atol=1e-6)
    assert torch.equal(ts.lower(again, out=tmp_path / "second").run(tokens), artifact.run(tokens))
    assert operators(tmp_path / "second") == operators(tmp_path / "first")


def encoder() -> tuple[ts.Program, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16), nn.LayerNorm(16), nn.Linear(16, 5, bias=False)
    )
    batches = [torch.randn(2, 6, 32) for _ in range(3)]
    return ts.trace(model.eval(), (batches[0],), dynamic={"input": {0: "batch"}}), batches


@pytest.mark.parametrize("per_token", [False, True])
def test_dynamic_quantization_runs_in_integer_and_computes_what_the_program_computes(
    per_token: bool, tmp_path: Path
) -> None:
    program, batches = encoder()
    quantized = ts.PassManager([ts.QuantizeDynamic(per_token=per_token)]).run(program).program
    artifact = ts.lower(quantized, out=tmp_path)
    linears = [row for row in artifact.report.audit if row.operator == "aten.linear"]
    assert [row.precision for row in linears] == ["int8"] * 3
    for batch in (*batches, torch.zeros(1, 6, 32), batches[0] * 1000):
        with torch.no_grad():
            expected, exact = quantized(batch), program(batch)
        found = artifact.run(batch)
        assert difference([expected], [found]).sqnr > 35
        assert difference([exact], [found]).sqnr > 25


def test_dynamic_scales_per_token_keep_an_outlier_from_the_other_tokens(tmp_path: Path) -> None:
    program, batches = encoder()
    batch = batches[0].clone()
    batch[0, 0] *= 300
    errors = {}
    for per_token in (False, True):
        quantized = ts.PassManager([ts.QuantizeDynamic(per_token=per_token)]).run(program).program
        artifact = ts.lower(quantized, out=tmp_path / str(per_token))
        with torch.no_grad():
            errors[per_token] = float((artifact.run(batch)[:, 1:] - program(batch)[:, 1:]).square().mean())
    assert errors[True] < 0.1 * errors[False]


def test_activations_may_be_quantized_by_onnx_runtime(tmp_path: Path) -> None:
    program, tokens = tied()
    quantized = ts.PassManager([ts.QuantizeWeights()]).run(program).program
    artifact = ts.lower(quantized, OnnxRuntime(int8_activations=True), tmp_path)
    with torch.no_grad():
        assert difference([quantized(tokens)], [artifact.run(tokens)]).sqnr > 25
