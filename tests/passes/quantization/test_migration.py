"""SmoothQuant, AWQ and equalization: the function stays, and the factors are those of the papers, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tersor.frontends.torch_export import trace
from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.program import Program
from tersor.ir.quantization import INT8
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.quantization.awq import AWQ
from tersor.passes.quantization.equalize_layers import EqualizeLayers
from tersor.passes.quantization.migration import chain_sites, linear_sites, migrate
from tersor.passes.quantization.smooth_quant import SmoothQuant
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm


class Gated(nn.Module):
    """A norm read by two linears, their product read by a third, and a residual: sites of three kinds."""

    def __init__(self, outliers: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.last = nn.Linear(16, 8)
        with torch.no_grad():
            self.norm.weight[2] *= outliers

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        z: Tensor = self.last(nn.functional.gelu(x))
        return z


class Convolutions(nn.Module):
    """A chain through batch norm, relu, a depthwise convolution, pooling and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 1, groups=2),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.body(x)).mean((2, 3)))
        return y


def gated(outliers: float = 1.0) -> tuple[Program, list[Tensor]]:
    torch.manual_seed(0)
    batches = [torch.randn(4, 6, 16) for _ in range(3)]
    return trace(Gated(outliers).eval(), (batches[0],)), batches


def same(left: Program, right: Program, inputs: Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(left(inputs), right(inputs), atol=1e-4, rtol=1e-4)


def test_sites_are_found_with_what_takes_the_division_in() -> None:
    program, _ = gated()
    found = {tuple(reader.name for reader in site.readers): site.scaled for site in linear_sites(program)}
    assert found == {
        ("linear", "linear_1"): (("norm.weight", 0), ("norm.bias", 0)),
        ("linear_2",): (("up.weight", 0), ("up.bias", 0)),
        ("linear_3",): None,
    }


@pytest.mark.parametrize("seed", range(5))
def test_migration_by_any_factors_keeps_the_function(seed: int) -> None:
    program, batches = gated()
    generator = torch.Generator().manual_seed(seed)
    for site in linear_sites(program):
        channels = program.tensor(str(site.readers[0].args[1].target)).shape[1]  # type: ignore[union-attr]
        factors = torch.exp(torch.randn(channels, generator=generator))
        moved = program.copy()
        migrate(moved, next(s for s in linear_sites(moved) if s.value.name == site.value.name), factors)
        moved.graph.eliminate_dead_code()
        moved.changed()
        assert same(program, moved.verify(), batches[0])


def test_a_value_that_something_else_reads_is_multiplied_and_not_divided_at_its_source() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            z: Tensor = y + self.linear(y)
            return z

    (site,) = linear_sites(trace(Shared().eval(), (torch.randn(2, 8),)))
    assert site.scaled is None


def test_heads_that_share_values_share_factors() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 50}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, use_cache=False)
    inputs = {"input_ids": torch.randint(0, 50, (1, 8)), "use_cache": False}
    program = Canonicalize()(trace(nn.Module.eval(LlamaForCausalLM(config)), (), inputs))
    site = next(site for site in linear_sites(program) if site.repeats is not None)
    assert site.repeats == (2, 2, 8)
    assert site.scaled == (("model.layers.0.self_attn.v_proj.weight", 0),)
    moved = program.copy()
    factors = torch.exp(torch.randn(32))
    migrate(moved, next(s for s in linear_sites(moved) if s.repeats is not None), factors)
    moved.changed()
    with torch.no_grad():
        assert torch.allclose(moved(**inputs).logits, program(**inputs).logits, atol=1e-5)


class Queries(nn.Module):
    """Attention whose values are constants, as in the first layer of a decoder of learned queries."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 5, 2, 8))
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        queries = self.queries.transpose(1, 2)
        seen = nn.functional.scaled_dot_product_attention(x.reshape(1, 5, 2, 8).transpose(1, 2), queries, queries)
        return self.out(seen.transpose(1, 2).reshape(1, 5, 16))


class Flat(nn.Module):
    """An input that is regrouped before the first linear."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.out(x.reshape(5, 16))


@pytest.mark.parametrize("net", [Queries, Flat])
def test_a_division_stops_at_constants_and_at_inputs(net: type[nn.Module]) -> None:
    program = Canonicalize()(trace(net().eval(), torch.randn(5, 2, 8)))
    (site,) = linear_sites(program)
    assert site.scaled is None


def test_smoothing_factors_are_those_of_the_paper() -> None:
    """One alpha, all data: s = max|x|^a / max|W|^(1-a), computed here from the raw data, up to one common factor."""
    program, batches = gated(outliers=50.0)
    smoothed = SmoothQuant(batches, alphas=(0.5,), insert=False)(program)
    norm = nn.LayerNorm(16)
    with torch.no_grad():
        norm.weight.copy_(program.tensor("norm.weight"))
        largest = norm(torch.cat(batches)).abs().flatten(0, 1).amax(0)
        weight = torch.cat([program.tensor("gate.weight"), program.tensor("up.weight")]).abs().amax(0)
        expected = (largest / weight).sqrt()
        found = program.tensor("norm.weight") / smoothed.tensor("norm.weight")
    assert torch.allclose(found / found[0], expected / expected[0], rtol=1e-3)
    assert same(program, smoothed, batches[0])


def test_nothing_is_smoothed_without_linears_and_data_is_asked_for() -> None:
    program = trace(Convolutions().body.eval(), (torch.randn(2, 3, 12, 12),))
    assert SmoothQuant(None).run(program.copy()).modified is False
    with pytest.raises(CalibrationError, match="missing"):
        SmoothQuant(None)(gated()[0])
    with pytest.raises(PassError, match="alphas"):
        SmoothQuant(alphas=(1.5,))


def test_smoothing_lowers_the_error_of_layers_with_outliers() -> None:
    program, batches = gated(outliers=100.0)
    smoothed = SmoothQuant(batches, scheme=INT8)(program)
    norm = program.graph.find_nodes(op="call_function", target=torch.ops.aten.layer_norm.default)[0]
    spread = [p.tensor(str(norm.args[2].target)).abs() for p in (program, smoothed)]
    assert spread[1].max() / spread[1].min() < 0.5 * spread[0].max() / spread[0].min()


def test_equalized_neighbours_have_equal_ranges() -> None:
    torch.manual_seed(0)
    model = Convolutions().eval()
    image = torch.randn(2, 3, 12, 12)
    program = FoldBatchNorm()(trace(model, (image,)))
    equalized = EqualizeLayers(sweeps=100, tolerance=1e-4)(program)
    assert same(program, equalized, image)
    names = ["body.0.weight", "body.3.weight", "body.6.weight", "head.weight"]
    first, depthwise, grouped, head = (equalized.tensor(name).detach() for name in names)
    assert torch.allclose(first.abs().amax((1, 2, 3)), depthwise.abs().amax((1, 2, 3)), rtol=1e-2)
    reads = torch.cat([grouped[:6].abs().amax((0, 2, 3)), grouped[6:].abs().amax((0, 2, 3))])
    assert torch.allclose(depthwise.abs().amax((1, 2, 3)), reads, rtol=1e-2)
    assert torch.allclose(grouped.abs().amax((1, 2, 3)), head.abs().amax(0), rtol=1e-2)
    assert len(chain_sites(program)) == 3


def test_awq_scales_the_channels_with_large_activations_up() -> None:
    """One channel has large activations and small weights, which a block shared with the others rounds away."""
    program, batches = gated(outliers=30.0)
    for name in ("gate.weight", "up.weight"):
        column = torch.ones(16)
        column[2] = 0.1
        program.set_tensor(name, program.tensor(name).detach() * column)
    scaled = AWQ(batches)(program)
    assert same(program, scaled, batches[0])
    factors = program.tensor("norm.weight") / scaled.tensor("norm.weight")
    assert int(factors.argmax()) == 2
