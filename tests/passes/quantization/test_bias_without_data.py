"""Bias correction from batch norms: the moments against samples, the correction against the mean error over data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Granularity, QuantType, Scheme
from tersor.passes.compare import node_values
from tersor.passes.manager import PassManager
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.correct_bias import CorrectBias
from tersor.passes.quantization.expected_inputs import Moments, clamped, expected_inputs
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm


@pytest.mark.parametrize("bounds", [(0.0, math.inf), (0.0, 6.0), (-math.inf, math.inf), (-1.0, 0.5)])
def test_moments_of_a_clamped_normal_are_those_of_samples(bounds: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([-2.0, 0.0, 0.7, 5.0], dtype=torch.float64)
    deviation = torch.tensor([1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    samples = mean + deviation * torch.randn(400_000, 4, generator=generator, dtype=torch.float64)
    samples = samples.clamp(*bounds)
    found = clamped(Moments(mean, deviation.square()), *bounds)
    assert torch.allclose(found.mean, samples.mean(0), atol=0.02)
    assert torch.allclose(found.variance, samples.var(0), atol=0.1)


class Net(nn.Module):
    """Convolutions with batch norms: plain, depthwise, grouped, and a linear behind a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.c, self.nc = nn.Conv2d(8, 12, 1, groups=2, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.na(self.a(x)))
        x = torch.nn.functional.relu6(self.nb(self.b(x)))
        x = torch.relu(self.nc(self.c(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def net() -> tuple[Net, list[Tensor]]:
    """A net whose batch norms know the data: their statistics are of it."""
    torch.manual_seed(0)
    model = Net()
    model.train()
    with torch.no_grad():
        for norm in (model.na, model.nb, model.nc):
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.uniform_(-1.0, 1.0)
            norm.momentum = None  # the plain mean over all batches
        batches = [torch.randn(16, 3, 12, 12) for _ in range(8)]
        for batch in batches:
            model(batch)
    model.eval()
    return model, batches


def test_expected_inputs_are_the_means_of_data() -> None:
    model, batches = net()
    found = expected_inputs(trace(model, (batches[0],)))
    assert set(found) == {"conv2d_1", "conv2d_2", "linear"}
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        x = torch.relu(model.na(model.a(torch.cat(batches))))
        seen["conv2d_1"] = x.mean((0, 2, 3))
        x = torch.nn.functional.relu6(model.nb(model.b(x)))
        seen["conv2d_2"] = x.mean((0, 2, 3))
    for name, mean in seen.items():
        assert torch.allclose(found[name], mean, atol=0.15)


@pytest.mark.parametrize("layer", ["conv2d_1", "conv2d_2", "linear"])
def test_correction_takes_most_of_the_mean_error_of_a_layer_out(layer: str) -> None:
    model, batches = net()
    program = trace(model, (batches[0],))
    folded = FoldBatchNorm()(program)
    coarse = Scheme(QuantType(8), QuantType(3, symmetric=True, granularity=Granularity.PER_TENSOR))
    plain = Calibrate(batches)(InsertFakeQuant(coarse, only=(f"%{layer}",))(folded))
    corrected = CorrectBias(expected=expected_inputs(program))(plain)
    assert corrected.history[-1].notes == ("1 biases from batch norms, without data",)
    exact, *found = (channel_means(p, layer, batches) for p in (folded, plain, corrected))
    errors = [float((mean - exact).abs().mean()) for mean in found]
    assert errors[1] < 0.35 * errors[0]


def channel_means(program: Program, layer: str, batches: list[Tensor]) -> Tensor:
    """The mean of each channel that a layer gives."""
    seen: list[Tensor] = []

    def visit(node: fx.Node, value: Any) -> None:
        if node.name == layer:
            seen.append(value.movedim(1, 0).flatten(1))

    for batch in batches:
        node_values(program, [batch], visit)
    return torch.cat(seen, 1).mean(1)


def test_layers_without_batch_norms_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    batches = [torch.randn(8, 4)]
    program = trace(model, (batches[0],))
    assert expected_inputs(program) == {}
    plain = Calibrate(batches)(InsertFakeQuant(INT8)(program))
    assert CorrectBias(expected={}).run(plain.copy()).modified is False


@pytest.mark.parametrize("options", [{"equalize": True}, {"smooth": True}])
def test_channels_that_were_scaled_since_are_refused(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    batches = [torch.randn(32, 8) * torch.tensor([100.0] + [1.0] * 7) for _ in range(2)]
    program = trace(model, (batches[0],))
    chosen = {"equalize": False, "smooth": False, **options}
    step = Quantize(calibration=batches, equalize=chosen["equalize"], smooth=chosen["smooth"], correct_bias=False)
    with pytest.raises(PassError, match="no longer say what layers read"):
        PassManager([step, CorrectBias(expected=expected_inputs(program))]).run(program)
