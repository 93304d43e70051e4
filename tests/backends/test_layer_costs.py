"""What layers cost on each target, against other ways to the same number."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

import tersor as ts
from tersor.backends.base import Unsupported
from tersor.backends.clock import Clock
from tersor.backends.hls.backend import Hls
from tersor.backends.layer_costs import LayerCosts
from tersor.backends.neon.backend import Neon
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.backends.tensorrt.backend import TensorRT
from tersor.backends.tensorrt.layer_costs import roofline
from tersor.ir.program import Program
from tersor.lowering import quantization


class Net(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.c = nn.Conv2d(width, width, 3, padding=1)
        self.linear = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(torch.relu(self.a(x))))
        logits: Tensor = self.linear(torch.relu(self.c(y)).mean((2, 3)))
        return logits


@lru_cache
def quantized(target: str, width: int = 64, pattern: ts.Block | ts.NM | None = None) -> Program:
    torch.manual_seed(0)
    batches = [torch.randn(1, 4, 8, 8)]
    program = ts.trace(Net(width), batches[0], dynamic={"x": {0: "batch"}})
    likes = {"onnxruntime": OnnxRuntime(), "tensorrt": TensorRT(), "neon": Neon(), "hls": Hls()}[target].preferences
    sparsify = [] if pattern is None else [ts.Sparsify(pattern, rules=((r"a\.|linear", None),))]
    return ts.PassManager([*sparsify, *quantization(likes, batches)], progress=False).run(program).program


def on_gpu(program: Program, rows: int) -> LayerCosts:
    """The roofline at another batch, without computing it."""
    prepared = TensorRT().prepare(program)
    prepared.example = (torch.zeros(rows, 4, 8, 8),)
    return roofline(prepared)


def test_onnxruntime_is_measured_node_by_node() -> None:
    program = quantized("onnxruntime")
    found = OnnxRuntime().layer_costs(program)
    assert (found.unit, found.clock) == ("ms", Clock.MEASURED)
    assert found.latency == pytest.approx(found.total / 1e3)
    products = [node.name for node in program.graph.nodes if program.cost().nodes[node.name].macs]
    assert set(products) <= set(found.nodes)
    assert all(cost >= 0 for cost in found.nodes.values())
    assert set(found.nodes) <= {node.name for node in program.graph.nodes} | {"other"}


def test_neon_counts_what_emulation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of benchmarks/results/neon_models.json were taken under qemu, of the ResNet-8 of the examples."""
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(root)
    model = importlib.import_module("examples.digits").DigitsNet(32)
    rows = json.loads((root / "benchmarks/results/neon_models.json").read_text())["rows"]
    torch.manual_seed(0)
    batches = [torch.randn(1, 1, 8, 8)]
    program = ts.trace(model.eval(), batches[0])
    program = ts.PassManager(quantization(Neon().preferences, batches), progress=False).run(program).program
    isas = ("neon", "dotprod", "i8mm")
    for last, isa in enumerate(isas, start=1):
        counted = next(row["ours"] for row in rows if row["what"] == f"ResNet-8, digits, dense, {isa}") * 1e6
        found = Neon(isas=isas[:last]).layer_costs(program)
        assert found.clock is Clock.MODELLED
        assert found.latency is None
        assert found.total == pytest.approx(sum(found.nodes.values()))
        assert counted * 0.9 < found.total < counted * 1.1


def test_neon_gains_by_its_own_blocks_and_not_by_others() -> None:
    dense = Neon().layer_costs(quantized("neon")).total
    assert Neon().layer_costs(quantized("neon", pattern=ts.Block(4, 8, 0.25))).total < 0.6 * dense
    # Not skipped; but smaller sums allow the cheaper requantization.
    assert Neon().layer_costs(quantized("neon", pattern=ts.NM(2, 4))).total == pytest.approx(dense, rel=0.03)


def test_hls_is_as_slow_as_its_slowest_layer(tmp_path: Path) -> None:
    """Oracle: the report of the design that lowering writes."""
    program = quantized("hls", 16)
    found = Hls().layer_costs(program)
    report = json.loads((ts.lower(program, Hls(), tmp_path).path / "report.json").read_text())
    assert found.total == report["formula"]
    assert found.total >= max(found.nodes.values())
    assert found.latency == pytest.approx(found.total / report["clock"] / 1e6)
    assert Hls(part="zynq7020").layer_costs(program).total >= found.total


def test_tensorrt_halves_the_arithmetic_of_sparse_weights() -> None:
    """By hand: the second convolution at a batch where arithmetic is what takes long."""
    rows = 4096
    dense, sparse = (on_gpu(quantized("tensorrt", 256, p), rows) for p in (None, ts.NM(2, 4)))
    arithmetic = rows * 64 * 256 * 256 * 9 / 125e12 * 1e6
    assert dense.nodes["conv2d_1"] == pytest.approx(arithmetic + 2, rel=1e-6)
    assert sparse.nodes["conv2d_1"] == pytest.approx(arithmetic / 2 + 2, rel=1e-6)
    assert dense.clock is Clock.MODELLED
    assert "nothing was measured" in dense.source


@pytest.mark.parametrize("rows", [4, 4096])
def test_tensorrt_computes_and_moves_whole_vectors_of_channels(rows: int) -> None:
    """Whether memory takes longest or arithmetic: 40 channels take what 64 do, and one fewer than 64 saves nothing."""
    narrow, nearly, whole = (on_gpu(quantized("tensorrt", width), rows).nodes["conv2d_1"] for width in (40, 63, 64))
    assert narrow == nearly == whole
    assert on_gpu(quantized("tensorrt", 65), rows).nodes["conv2d_1"] > whole


def test_tensorrt_moves_few_channels_in_short_vectors() -> None:
    """By hand: four channels in, 64 out, where memory takes longest; the weights are 64 of 4 x 9 values, in tiles."""
    moved = 4 * 64 * (4 + 64) + 64 * 64
    assert on_gpu(quantized("tensorrt"), 4).nodes["conv2d"] == pytest.approx(moved / 600e9 * 1e6 + 2, rel=0.02)


def test_int8_is_faster_than_float_where_a_target_says_so() -> None:
    floats = ts.trace(Net(256), torch.randn(1, 4, 8, 8), dynamic={"x": {0: "batch"}})
    assert on_gpu(quantized("tensorrt", 256), 512).total < on_gpu(floats, 512).total / 2
    one = TensorRT().layer_costs(quantized("tensorrt"))
    assert one.total == pytest.approx(on_gpu(quantized("tensorrt"), 1).total)


def test_a_target_that_says_nothing_counts_macs(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Plain(ts.Backend):
        name: ClassVar[str] = "plain"
        summary: ClassVar[str] = "takes all"

        def supports(self, program: Program, node: fx.Node) -> Unsupported | None:
            return None

        def emit(self, program: Program, out: Path) -> ts.Artifact:
            raise NotImplementedError

    program = ts.trace(Net(), torch.randn(1, 4, 8, 8))
    found = Plain().layer_costs(program)
    assert (found.total, found.unit) == (program.cost().macs, "MACs")
    assert Plain().preferences.schemes() == (ts.INT8,)
