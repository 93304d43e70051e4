"""Learned rounding against trying every choice of up and down."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import Granularity, QuantType, Scheme
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.learn_rounding import LearnRounding
from tersor.passes.quantization.rounding_units import Scope, units
from tersor.passes.quantization.weight_grid import WeightGrid, quantized_layers
from tersor.passes.training.options import Optimizer, Schedule, Training

W3 = Scheme(weight=QuantType(3, symmetric=True, granularity=Granularity.PER_CHANNEL))
FAST = Training(steps=150, optimizer=Optimizer.ADAM, learning_rate=5e-2, schedule=Schedule.CONSTANT, progress=False)


def quantized(model: nn.Module, batches: list[Tensor]) -> tuple[Program, Program]:
    program = trace(model.eval(), (batches[0],))
    return program, Calibrate(batches)(InsertFakeQuant(W3)(program))


def together(count: int, columns: int, seed: int) -> list[Tensor]:
    """Inputs whose channels go together, so that errors can cancel."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    return [torch.randn(64, columns, generator=generator) @ mixing for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_one_row_is_rounded_nearly_as_well_as_by_trying_everything(seed: int) -> None:
    torch.manual_seed(seed)
    batches = together(2, 8, seed)
    program, plain = quantized(nn.Linear(8, 1), batches)
    learned = LearnRounding(batches, training=FAST)(plain)
    (layer,) = quantized_layers(plain)
    grid = WeightGrid.of(plain, layer.quantizer)
    below = torch.floor(grid.weight / grid.scale)

    def error(candidate: Program) -> float:
        with torch.no_grad():
            return sum(float((candidate(b) - program(b)).square().mean()) for b in batches)

    found = []
    for choice in itertools.product((0.0, 1.0), repeat=8):
        tried = plain.copy()
        steps = (below + torch.tensor([choice])).clamp(grid.quant_min, grid.quant_max)
        tried.set_tensor(layer.weight, steps * grid.scale)
        found.append(error(tried))
    assert min(found) - 1e-9 <= error(learned) <= error(plain)
    better = sum(value < error(learned) - 1e-9 for value in found)
    assert better <= 8  # of 256


class Chain(nn.Module):
    """Two blocks of two linears with a residual each, named as repeated modules are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12)) for _ in range(2))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        y: Tensor = self.head(x)
        return y


def test_units_are_layers_or_blocks_with_their_residual() -> None:
    torch.manual_seed(0)
    batches = together(2, 12, 0)
    _, plain = quantized(Chain(), batches)
    layers = list(quantized_layers(plain))
    assert [unit.output.name for unit in units(plain, layers, Scope.LAYER)] == [layer.node.name for layer in layers]
    blocks = units(plain, layers, Scope.BLOCK)
    assert [unit.output.name for unit in blocks] == ["add", "add_1", "linear_4"]
    assert [len(unit.layers) for unit in blocks] == [2, 2, 1]


@pytest.mark.parametrize("scope", list(Scope))
def test_learned_weights_are_on_their_grids_beside_the_float_ones_and_the_output_improves(scope: Scope) -> None:
    torch.manual_seed(0)
    batches = together(3, 12, 1)
    program, plain = quantized(Chain(), batches)
    learned = LearnRounding(batches, scope=scope, training=FAST)(plain)
    steps = {
        str(node.args[0].target): learned.tensor(str(node.args[1].target))
        for node in learned.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
        if learned.constant(node.args[0]) is not None
    }
    assert len(steps) == 5
    for name, scale in steps.items():
        moved = (learned.tensor(name) - program.tensor(name)).abs() / scale.unsqueeze(1)
        assert float(moved.max()) < 1.001
    with torch.no_grad():
        errors = [sum(float((p(b) - program(b)).square().sum()) for b in batches) for p in (plain, learned)]
    assert errors[1] < errors[0]


def test_data_and_options_are_checked() -> None:
    batches = together(1, 12, 0)
    _, plain = quantized(Chain(), batches)
    with pytest.raises(CalibrationError, match="missing"):
        LearnRounding()(plain)
    with pytest.raises(PassError, match="positive"):
        LearnRounding(strength=0)
