"""An encoder whose activations have strong outlier channels, made from a trained one without changing its function."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, RobertaPreLayerNormConfig, RobertaPreLayerNormModel

import tersor as ts
from tersor.ir.quantization import Observer
from tersor.passes.quantization.smooth_quant import SmoothQuant

LENGTH = 32
OUTLIERS = (3, 17, 42)
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 257,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def sequences(count: int, seed: int) -> Tensor:
    """Bytes of Python source as int64[count, LENGTH]."""
    source = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_bytes()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(source) - LENGTH, (count,), generator=generator).tolist()
    return torch.tensor([list(source[start : start + LENGTH]) for start in starts])


def train(encoder: nn.Module, steps: int = 60) -> nn.Module:
    """Teach it to fill in hidden bytes: a few steps, enough that its weights are those of a model and not noise."""
    torch.manual_seed(0)
    head = nn.Linear(64, 256)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
    for step in range(steps):
        tokens = sequences(16, step)
        hidden = torch.rand(tokens.shape) < 0.15
        given = torch.where(hidden, 256, tokens)
        logits = head(encoder(input_ids=given).last_hidden_state[hidden])
        loss = F.cross_entropy(logits, tokens[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval()


def scale_channels(norm: Any, linears: list[nn.Linear], factor: float) -> None:
    """Make some channels of a norm's output larger, and the linears that read them smaller: the same function."""
    channels = list(OUTLIERS)
    with torch.no_grad():
        norm.weight[channels] *= factor
        norm.bias[channels] *= factor
        for linear in linears:
            linear.weight[:, channels] /= factor


def scale_values(attention: Any, factor: float) -> None:
    """The same of an attention's values and its output projection, in a BERT layer."""
    channels = list(OUTLIERS)
    value, output = attention.self.value, attention.output.dense
    with torch.no_grad():
        value.weight[channels] *= factor
        value.bias[channels] *= factor
        output.weight[:, channels] /= factor


class Embedding(nn.Module):
    """The mean of an encoder's last hidden states, as sentence encoders give it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64[batch, length] to float32[batch, 64]."""
        hidden: Tensor = self.encoder(input_ids=input_ids).last_hidden_state
        return hidden.mean(1)


def made(kind: str) -> Any:
    """An encoder that norms before each part, or BERT, which norms after."""
    if kind == "norms":
        return RobertaPreLayerNormModel(RobertaPreLayerNormConfig(**_SIZES), add_pooling_layer=False)
    return BertModel(BertConfig(**_SIZES), add_pooling_layer=False)


@pytest.fixture(scope="module", params=["norms", "values"])
def encoder(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A trained encoder, and the same with outliers a hundred times as large as other channels."""
    torch.manual_seed(0)
    plain, scaled = (made(request.param) for _ in range(2))
    scaled.load_state_dict(train(plain).state_dict())
    for layer in scaled.encoder.layer:
        if request.param == "norms":
            attention = layer.attention.self
            scale_channels(layer.attention.LayerNorm, [attention.query, attention.key, attention.value], 128.0)
            scale_channels(layer.intermediate.LayerNorm, [layer.intermediate.dense], 128.0)
        else:
            scale_values(layer.attention, 512.0)
    return Embedding(plain).eval(), Embedding(scaled).eval()


def cosine(left: Tensor, right: Tensor) -> float:
    """The least over the batch, of what tells sequences apart: the mean embedding is taken out of both."""
    centre = left.mean(0)
    return float(F.cosine_similarity(left - centre, right - centre, dim=-1).min())


def quantized(program: ts.Program, batches: list[Tensor], **options: Any) -> ts.Program:
    return ts.PassManager([ts.Quantize(ts.INT8, calibration=batches, **options)]).run(program).program


def test_outliers_do_not_change_the_function_and_break_naive_quantization_and_not_ours(
    encoder: tuple[nn.Module, nn.Module],
) -> None:
    plain, scaled = encoder
    batches, held_out = list(sequences(64, 1000).split(8)), sequences(32, 2000)
    with torch.no_grad():
        exact = plain(held_out)
        assert torch.allclose(scaled(held_out), exact, atol=1e-4)
        program = ts.trace(scaled, (batches[0],), dynamic={"input_ids": {0: "batch"}})
        naive = quantized(program, batches, observer=Observer.MIN_MAX, smooth=False, correct_bias=False)
        ours = quantized(program, batches)
        assert cosine(exact, naive(held_out)) < 0.97
        assert cosine(exact, ours(held_out)) >= 0.995


def test_smoothing_keeps_the_function_and_evens_out_the_channels(encoder: tuple[nn.Module, nn.Module]) -> None:
    _, scaled = encoder
    batch = sequences(8, 1)
    program = ts.Canonicalize()(ts.trace(scaled, (batch,)))
    smoothed = SmoothQuant([batch])(program)
    with torch.no_grad():
        assert torch.allclose(smoothed(batch), program(batch), atol=1e-4)
    assert smoothed.history[-1].notes[0].split(" of ")[0] != "0"


class Residual(nn.Module):
    """A linear that reads a value with outliers which something else reads too, so that nothing takes a division in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y: Tensor = x + self.b(x)
        return y


@pytest.mark.parametrize("coverage", list(ts.Coverage))
def test_no_multiplication_is_inserted_where_all_is_integer(coverage: ts.Coverage) -> None:
    """Its factors would be on a grid, which rounds the smallest, those of the outliers, away."""
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        model.a.weight[3] *= 100.0
        model.b.weight[:, 3] /= 100.0
    batches = [torch.randn(8, 16) for _ in range(4)]
    steps: list[ts.Pass] = [ts.Quantize(calibration=batches, coverage=coverage)]
    program = ts.PassManager(steps).run(ts.trace(model, batches[0])).program
    inserted = any("smoothed" in node.name for node in program.graph.nodes)
    assert inserted == (coverage is ts.Coverage.FASTEST)
