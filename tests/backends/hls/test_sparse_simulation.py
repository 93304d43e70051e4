"""C simulation of what pruning and sparsity leave, of streamed weights, and of sums that need exceptions or tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.hls import pair_sum
from tersor.backends.hls.backend import Hls
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import INT8
from tersor.ir.sparsity import Block
from tersor.passes.base import Pass
from tersor.passes.manager import PassManager
from tersor.passes.pruning.prune_channels import PruneChannels
from tersor.passes.pruning.targets import Macs
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.sparsity.sparsify import Sparsify

from .models import DsCnn, Mixed, ResNet, emitted, jet_tagger, quantized, varied
from .test_simulation import agree

pytestmark = pytest.mark.usefixtures("compiler")


def compressed(model: nn.Module, shape: tuple[int, ...], *passes: Pass) -> Program:
    """Passes, then quantization."""
    torch.manual_seed(3)
    batches = [torch.randn(shape) for _ in range(3)]
    quantize = Quantize(INT8, calibration=batches, coverage=Coverage.EVERYTHING)
    return PassManager([*passes, quantize]).run(trace(varied(model), (batches[0],))).program


def rows_of(folder: Path) -> list[dict[str, object]]:
    """The layers of a report."""
    rows: list[dict[str, object]] = json.loads((folder / "report.json").read_text())["layers"]
    return rows


def folded(program: Program, out: Path, **changes: object) -> Hls:
    """A folding with the same numbers in every layer that they divide."""
    emitted(program, out, Hls("u50"))
    document = json.loads((out / "folding.json").read_text())
    for layer in document["layers"].values():
        for kind in ("pe", "simd"):
            layer[kind] = max(set(layer[f"{kind}_may_be"]) & {1, 2, 4})
        if layer["simd_may_be"] != [1]:
            layer.update(changes)
    path = out / "edited.json"
    path.write_text(json.dumps(document))
    return Hls("u50", folding=path)


@pytest.mark.parametrize("kept", [0.5, 0.2, 0.1])
def test_block_sparse(kept: float, tmp_path: Path) -> None:
    program = compressed(jet_tagger(), (1, 16), Sparsify(Block(1, 4, kept)))
    lowered, artifact = emitted(program, tmp_path / "sparse", folded(program, tmp_path / "fold"))
    agree(lowered, artifact)
    shares = [float(str(row["share"])) for row in rows_of(tmp_path / "sparse") if row["kind"] == "mvau"]
    assert min(shares) < kept + 0.35  # the rows of a fold wait for the fullest of them


def test_block_sparse_images(tmp_path: Path) -> None:
    program = compressed(ResNet(4), (1, 3, 12, 12), Sparsify(Block(1, 4, 0.3)))
    lowered, artifact = emitted(program, tmp_path / "sparse", folded(program, tmp_path / "fold"))
    agree(lowered, artifact)
    assert any(float(str(row["share"])) < 0.5 for row in rows_of(tmp_path / "sparse"))


def test_pruned_channels_shrink_the_units(tmp_path: Path) -> None:
    whole = compressed(DsCnn(8, 1), (1, 1, 49, 10))
    pruned = compressed(DsCnn(8, 1), (1, 1, 49, 10), PruneChannels(Macs(0.5)))
    emitted(whole, tmp_path / "whole", Hls(cycles=20_000))
    lowered, artifact = emitted(pruned, tmp_path / "pruned", Hls(cycles=20_000))
    agree(lowered, artifact)
    macs = [sum(int(str(row["macs"])) for row in rows_of(tmp_path / name)) for name in ("whole", "pruned")]
    assert macs[1] < 0.6 * macs[0]


def test_compress_keeps_multiples_of_pe_and_simd_and_cycles_shrink(tmp_path: Path) -> None:
    """From the front door to cycles: units folded by 4 still are, and take as many cycles less as they have less."""
    model, batches = jet_tagger().eval(), [torch.randn(1, 16) for _ in range(3)]
    ts.compress(
        model, batches[0], target="hls", budget=ts.Budget(macs="0.5x"), calibration=batches, out=tmp_path / "compressed"
    )
    programs = {
        "whole": quantized(jet_tagger(), (1, 16)),
        "pruned": ts.load(tmp_path / "compressed" / "program.tersor"),
    }
    rows = {}
    for name, program in programs.items():
        emitted(program, tmp_path / name, folded(program, tmp_path / f"{name}_by_4"))
        rows[name] = [row for row in rows_of(tmp_path / name) if row["kind"] == "mvau"]
    folds = {name: [(row["pe"], row["simd"]) for row in found] for name, found in rows.items()}
    assert folds["pruned"] == folds["whole"] == [(4, 4), (4, 4), (4, 4), (1, 4)]
    for whole, pruned in zip(rows["whole"], rows["pruned"], strict=True):
        for row in (whole, pruned):
            assert row["cycles"] == int(str(row["macs"])) // (int(str(row["pe"])) * int(str(row["simd"])))
        assert int(str(pruned["cycles"])) < int(str(whole["cycles"]))
    assert sum(int(str(row["macs"])) for row in rows["pruned"]) <= 0.5 * sum(
        int(str(row["macs"])) for row in rows["whole"]
    )


def test_streamed_weights(tmp_path: Path) -> None:
    program = quantized(jet_tagger(), (1, 16))
    lowered, artifact = emitted(program, tmp_path / "out", folded(program, tmp_path / "fold", streamed=True))
    assert "m_axi" in (tmp_path / "out" / "hls" / "model.cpp").read_text()
    agree(lowered, artifact)


def test_products_in_look_up_tables(tmp_path: Path) -> None:
    program = quantized(jet_tagger(), (1, 16))
    lowered, artifact = emitted(program, tmp_path / "out", folded(program, tmp_path / "fold", fabric=True))
    agree(lowered, artifact)
    assert "FABRIC = 1" in "".join(path.read_text() for path in (tmp_path / "out" / "hls" / "layers").iterdir())


class Sums(nn.Module):
    """Sums and a difference of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        result: Tensor = (a - b) + a
        return result


@pytest.mark.parametrize("most", [64, 0])
def test_sums_without_a_multiplier_form(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With multipliers of few bits alone no form is exact: exceptions, or a table where these are too many."""
    monkeypatch.setattr(pair_sum, "_SHIFTS", range(13, 14) if most else range(2, 3))
    monkeypatch.setattr(pair_sum, "_NUDGES", ())
    monkeypatch.setattr(pair_sum, "_MOST_EXCEPTIONS", 3000 if most else 0)
    request.addfinalizer(pair_sum.proven_sum.cache_clear)
    pair_sum.proven_sum.cache_clear()
    torch.manual_seed(7)
    lowered, artifact = emitted(quantized(Sums(), (1, 2, 5, 4)), tmp_path, Hls("u50", cycles=200))
    agree(lowered, artifact)
    layers = "".join(path.read_text() for path in (tmp_path / "hls" / "layers").iterdir())
    assert ("pair_exception" if most else "table") in layers
    assert "EXCEPTIONS = 1;" not in layers


def test_mixed_folds(tmp_path: Path) -> None:
    """Folds that neighbours do not share: converters between all of them, also where neither divides the other."""
    program = quantized(Mixed(), (1, 3, 16, 12))
    emitted(program, tmp_path / "fold", Hls("u50"))
    document = json.loads((tmp_path / "fold" / "folding.json").read_text())
    for index, layer in enumerate(document["layers"].values()):
        for kind in ("pe", "simd"):
            legal = layer[f"{kind}_may_be"]
            layer[kind] = legal[-1 - index % 2 if len(legal) > 1 else -1]
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(document))
    agree(*emitted(program, tmp_path / "out", Hls(folding=path)))
