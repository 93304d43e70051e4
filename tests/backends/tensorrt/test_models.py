"""Models of the transformers library and the digits CNN: which of their products engines run in int8."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from tersor.backends.tensorrt.artifact import TensorRTArtifact
from tersor.backends.tensorrt.backend import TensorRT
from tersor.backends.tensorrt.layered import run_onnx
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_SYMMETRIC
from tersor.lowering import lower
from tersor.passes.compare import difference
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize

Case = tuple[nn.Module, dict[str, Tensor], dict[str, Any]]
PRODUCTS = ("conv2d", "linear")


def image(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size)


def tokens(length: int) -> dict[str, Tensor]:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    return {"input_ids": torch.randint(0, 50, (2, length)), "attention_mask": mask}


def digits_cnn(full: bool) -> Case:
    path = Path(__file__).parents[3] / "examples" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits_of_the_examples", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DigitsNet(32), {"x": image(8, 1)}, {"x": {0: "batch"}}


def resnet(full: bool) -> Case:
    small: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
    model = tf.ResNetForImageClassification(tf.ResNetConfig(**({} if full else small)))
    return model, {"pixel_values": image(224 if full else 32)}, {"pixel_values": {0: "batch"}}


def mobilenet(full: bool) -> Case:
    config = tf.MobileNetV2Config(depth_multiplier=1.0 if full else 0.25, initializer_range=0.2)
    model = tf.MobileNetV2ForImageClassification(config)
    return model, {"pixel_values": image(224 if full else 32)}, {"pixel_values": {0: "batch"}}


def vit(full: bool) -> Case:
    small: dict[str, Any] = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    model = tf.ViTForImageClassification(tf.ViTConfig(**({} if full else small)))
    return model, {"pixel_values": image(224 if full else 32)}, {}


def bert(full: bool) -> Case:
    small: dict[str, Any] = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 50,
    }  # fmt: skip
    return tf.BertModel(tf.BertConfig(**({} if full else small))), tokens(128 if full else 16), {}


MODELS = {"digits_cnn": digits_cnn, "resnet": resnet, "mobilenet": mobilenet, "vit": vit, "bert": bert}


def quantized(name: str, full: bool, **options: Any) -> tuple[Program, Program, dict[str, Tensor]]:
    """The float program, the quantized one, and inputs."""
    torch.manual_seed(0)
    model, inputs, dynamic = MODELS[name](full)
    program = trace(model.eval(), (), inputs, dynamic)
    options = {"pair_safe": False, "correct_bias": False, **options}
    return program, Quantize(INT8_SYMMETRIC, calibration=[inputs], **options)(program), inputs


def build(program: Program, out: Path, **options: Any) -> TensorRTArtifact:
    artifact = lower(program, TensorRT(**options), out)
    assert isinstance(artifact, TensorRTArtifact)
    return artifact


Small = Callable[[str], tuple[Program, Program, dict[str, Tensor], TensorRTArtifact]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """By name: the float program, the quantized one, inputs, and the engine, each made once."""

    @cache
    def made(name: str) -> tuple[Program, Program, dict[str, Tensor], TensorRTArtifact]:
        floats, program, inputs = quantized(name, full=False)
        return floats, program, inputs, build(program, tmp_path_factory.mktemp(name))

    return made


@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_and_linear_runs_in_int8(name: str, small: Small) -> None:
    floats, program, inputs, artifact = small(name)
    rows = [row for row in artifact.layers_run if row.operator.rpartition(".")[2] in PRODUCTS]
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    expected = [node.name for node in calls if str(node.target).split(".")[1] in PRODUCTS]
    assert [row.node for row in rows] == expected
    assert [row for row in rows if not row.integer] == []
    assert artifact.integer_share(*PRODUCTS) == 1.0
    if name != "mobilenet":  # fresh statistics of its batch norms let nothing through
        given = list(inputs.values())
        exact = [value.detach() for value in floats.run(given)]
        assert difference(exact, run_onnx(artifact.model, given)).sqnr > 15


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "digits_cnn"])
def test_the_same_at_full_size(name: str, tmp_path: Path) -> None:
    _, program, _ = quantized(name, full=True)
    artifact = build(program, tmp_path)
    assert artifact.integer_share(*PRODUCTS) == 1.0
    share = artifact.integer_share()
    assert share == 1.0 if name in ("resnet", "mobilenet") else 0.9 < share < 1.0


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_attention_is_one_kernel_where_it_is_float(name: str, small: Small) -> None:
    rows = [r for r in small(name)[-1].layers_run if r.operator == "aten.scaled_dot_product_attention"]
    assert len(rows) == 2
    assert all("mha" in row.kernel and row.activations == "float16" for row in rows)
    assert all("the one kernel" in row.why for row in rows)


def test_attention_that_is_quantized_has_int8_products_and_a_float_softmax(tmp_path: Path) -> None:
    _, program, _ = quantized("vit", full=False, coverage=Coverage.EVERYTHING)
    artifact = build(program, tmp_path)
    rows = {row.node: row for row in artifact.layers_run if row.operator == "aten.matmul"}
    assert len(rows) == 4
    assert all(row.integer for row in rows.values())
    assert artifact.integer_share() == 1.0
    assert any("grids between fused operators taken away" in note for note in artifact.report.notes)


@pytest.mark.parametrize("cut", ["split", "chunk", "unbind"])
def test_query_key_and_value_from_one_linear_stay_int8(cut: str, tmp_path: Path) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.joined, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            y = self.joined(x)
            if cut == "unbind":
                q, k, v = y.reshape(2, 16, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
            else:
                parts = y.split(64, -1) if cut == "split" else y.chunk(3, -1)
                q, k, v = (part.reshape(2, 16, 4, 16).transpose(1, 2) for part in parts)
            attended = nn.functional.scaled_dot_product_attention(q, k, v)
            out: Tensor = self.out(attended.transpose(1, 2).reshape(2, 16, 64))
            return out

    torch.manual_seed(0)
    x = torch.randn(2, 16, 64)
    program = Quantize(INT8_SYMMETRIC, calibration=[x], correct_bias=False)(trace(Joined(), (x,)))
    artifact = build(program, tmp_path)
    assert artifact.integer_share("linear") == 1.0
    assert difference([program(x).detach()], [artifact.run_onnx(x)]).sqnr > 30
