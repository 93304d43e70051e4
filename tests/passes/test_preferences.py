"""What targets like, and the passes that go by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.backends.hls.backend import Hls
from tersor.backends.neon.backend import BLOCKS, Neon
from tersor.backends.neon.choice import choose
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.backends.tensorrt.backend import TensorRT
from tersor.ir.errors import PassError
from tersor.passes.preferences import FastPattern, Multiples, Preferences
from tersor.passes.sparsity.patterns import as_weight, keep_mask
from tersor.recipe import ready_recipes


def test_multiples_suit_both_sides() -> None:
    assert Multiples(4, 6).channels == 12
    assert Multiples().channels == 1


def test_the_pattern_that_costs_least_accuracy_is_taken() -> None:
    likes = Preferences(patterns=(FastPattern(ts.Block(1, 4, 0.6)), FastPattern(ts.Block(4, 4, 0.8))))
    assert likes.sparse(0.5) == ts.Block(1, 4, 0.5)
    assert likes.sparse(0.7) == ts.Block(4, 4, 0.7)
    assert likes.sparse(0.9) is None


def test_n_of_m_has_one_density() -> None:
    fast = FastPattern(ts.NM(2, 4))
    assert fast.pays_from == 0.5
    assert fast.at(0.5) == ts.NM(2, 4)
    assert fast.at(0.25) is None


def test_schemes_are_all_legal_widths_the_most_exact_first() -> None:
    found = Preferences(weight_bits=(8, 4), activation_bits=(8, 4)).schemes()
    assert [(scheme.activation.bits, scheme.weight.bits) for scheme in found] == [(8, 8), (8, 4), (4, 4)]
    assert TensorRT().preferences.schemes() == (ts.INT8_SYMMETRIC,)


def test_passes_take_their_defaults_from_a_target() -> None:
    likes = TensorRT().preferences
    assert ts.PruneChannels.suited(likes, target=ts.Macs(0.5)).multiple == 32
    assert ts.PruneChannels.suited(likes, multiple=3).multiple == 3
    assert ts.Sparsify.suited(likes, 0.5).pattern == ts.NM(2, 4)
    quantize = ts.Quantize.suited(likes)
    assert (quantize.scheme, quantize.coverage, quantize.pair_safe) == (ts.INT8_SYMMETRIC, ts.Coverage.FASTEST, False)
    assert ts.Quantize.suited(Neon().preferences).coverage is ts.Coverage.EVERYTHING
    assert ts.Quantize.suited(OnnxRuntime().preferences).pair_safe


def test_a_density_that_does_not_pay_is_refused() -> None:
    with pytest.raises(PassError, match="no pattern faster than dense") as caught:
        ts.Sparsify.suited(OnnxRuntime().preferences, 0.5)
    assert "skips zeros" in str(caught.value)


@pytest.mark.parametrize("backend", [OnnxRuntime(), TensorRT(), Neon(), Hls()])
def test_every_target_names_a_recipe_that_is_there(backend: ts.Backend) -> None:
    assert backend.preferences.recipe in ready_recipes()


def test_options_of_a_target_change_what_it_likes() -> None:
    assert Neon(isas=("neon", "dotprod")).preferences.multiples.channels == 4
    assert Neon().preferences.multiples.channels == 8
    assert Neon(isas=("neon",)).preferences.patterns[0].pattern.name == "block"


@pytest.mark.parametrize("isa", ["neon", "dotprod", "i8mm"])
def test_the_densities_of_neon_are_those_from_which_its_own_choice_skips(isa: str) -> None:
    """Oracle: the kernel that lowering chooses for weights at either side of that density."""
    torch.manual_seed(0)
    isas = tuple(BLOCKS)
    for fast in Neon(isas=isas[: isas.index(isa) + 1]).preferences.patterns:
        for density, skips in ((fast.pays_from * 0.9, True), (min(1.0, fast.pays_from * 1.1), False)):
            pattern = ts.Block(fast.pattern.rows, fast.pattern.columns, density)  # type: ignore[attr-defined]  # a block
            weight = torch.randint(1, 127, (64, 64)).float()
            weight = weight * keep_mask(pattern, torch.rand_like(weight))
            chosen = choose(isa, as_weight(weight, torch.Size((64, 64, 1, 1))).numpy())
            assert (chosen.name != "dense") is (skips or density < fast.pays_from), (pattern, chosen)


def test_channels_are_pruned_to_what_a_target_counts_in() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 1))
    program = ts.trace(model, torch.randn(1, 3, 8, 8))
    for backend in (OnnxRuntime(), TensorRT(), Neon(), Hls()):
        pruned = ts.PruneChannels.suited(backend.preferences, target=ts.Macs(0.5))(program)
        widths = [tensor.shape[0] for tensor in pruned.parameters().values() if tensor.dim() == 4][:2]
        assert all(width % backend.preferences.multiples.channels == 0 for width in widths), (backend.name, widths)
