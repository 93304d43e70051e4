"""Ranges by the error of the layers that read a value, and what a quantization says that it chose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.operators import FAKE_QUANTIZE, OBSERVE
from tersor.ir.program import Program
from tersor.ir.quantization import Observer, QuantType
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.observers import Range, grid
from tersor.passes.quantization.output_range import readers_of

KIND = QuantType(8)


def observed(model: nn.Module, batch: Tensor) -> Program:
    return InsertFakeQuant()(ts.trace(model.eval(), (batch,)))


def activation_scale(program: Program) -> float:
    for node in program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        if program.constant(node.args[0]) is None:
            return float(program.tensor(str(node.args[1].target)))
    raise AssertionError("no activation on a grid")


def heavy(columns: int = 16) -> tuple[list[Tensor], nn.Linear]:
    """One value in a thousand is thirty times larger, and stands in a channel that the layer hardly reads."""
    torch.manual_seed(0)
    batches = [torch.randn(64, columns) for _ in range(4)]
    for batch in batches:
        batch[::16, 0] *= 30
    linear = nn.Linear(columns, 8)
    with torch.no_grad():
        linear.weight[:, 0] *= 1e-3
    return batches, linear


def test_an_outlier_that_the_layer_hardly_reads_is_clipped() -> None:
    batches, linear = heavy()
    program = observed(linear, batches[0])
    by_output = activation_scale(Calibrate(batches, Observer.OUTPUT)(program))
    by_extremes = activation_scale(Calibrate(batches, Observer.MIN_MAX)(program))
    assert by_output < 0.25 * by_extremes


def test_an_outlier_that_the_layer_does_read_is_kept() -> None:
    batches, linear = heavy()
    with torch.no_grad():
        linear.weight[:, 0] *= 1e4
    program = observed(linear, batches[0])
    by_output = activation_scale(Calibrate(batches, Observer.OUTPUT)(program))
    by_extremes = activation_scale(Calibrate(batches, Observer.MIN_MAX)(program))
    assert by_output > 0.9 * by_extremes


@pytest.mark.parametrize("model", [nn.Linear(12, 5), nn.Conv2d(12, 5, 3), nn.Conv1d(12, 6, 3, groups=2)])
def test_no_other_limit_has_less_error_on_the_sample(model: nn.Module) -> None:
    """Against limits that the search does not try, by running the layer itself."""
    torch.manual_seed(1)
    shape = {nn.Linear: (64, 12), nn.Conv2d: (1, 12, 9, 9), nn.Conv1d: (1, 12, 20)}[type(model)]
    value = torch.randn(shape) ** 3
    program = observed(model, value)
    observer = next(n for n in program.graph.nodes if n.target is OBSERVE and n.args[0].op == "placeholder")
    readers = readers_of(program, observer)
    assert readers is not None
    readers.add(value)
    low, high = float(value.min()), float(value.max())

    def error(span: Range) -> float:
        scale, zero = grid(span, KIND)
        quantized = (torch.round(value / scale + 0.0) + zero).clamp(KIND.qmin, KIND.qmax)
        with torch.no_grad():
            return float((model((quantized - zero) * scale) - model(value)).square().sum())

    largest = max(-low, high)
    others = [
        Range(max(low, -largest * share), min(high, largest * share)) for share in torch.linspace(0.02, 1, 60).tolist()
    ]
    assert error(readers.choose(Range(low, high), KIND)) <= 1.25 * min(map(error, others))


def test_a_value_that_other_operators_read_is_judged_by_its_own_error() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z: Tensor = self.b(y) + y
            return z

    program = observed(Both(), torch.randn(1, 3, 4, 4))
    nodes = {n.name: n for n in program.graph.nodes if n.name.endswith("observed")}
    assert readers_of(program, nodes["x_observed"]) is not None


def test_what_was_chosen_and_why_is_in_the_report_and_with_the_artifact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    dense = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    notes = {}
    for name, model, batch in (("c", convolutional, torch.randn(2, 3, 8, 8)), ("d", dense, torch.randn(4, 8))):
        artifact = ts.compress(model.eval(), (batch,), calibration=[batch], out=tmp_path / name)
        notes[name] = "\n".join(artifact.report.notes)
    assert "convolutional: 2 conv2d" in notes["c"]
    assert "no linear layers: nothing to smooth" in notes["c"]
    assert "transformer or dense: 2 linear" in notes["d"]
    assert "no equalization: weights have a scale a channel" in notes["d"]
    program = ts.trace(dense, (batch,))
    few = ts.PassManager([ts.Quantize(ts.W4A8, calibration=[batch])]).run(program).report
    said = "\n".join(note for row in few.rows for note in row.notes)
    assert "GPTQ: with 4 bits" in said
    assert "equalization: weights have 4 bits" in said
