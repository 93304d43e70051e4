"""Learned step sizes: the gradient and its scale by the paper's formulas, and the bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.passes.training.step_sizes import StepSizes, gradient_scale

from . import networks


def quantized(model: nn.Module | None = None, scheme: ts.Scheme = ts.INT8) -> ts.Program:
    x, _ = networks.data(32)
    program = ts.trace(model, x, dynamic={"input": {0: "batch"}}) if model else networks.program()
    return ts.PassManager([ts.Quantize(scheme, calibration=[x])]).run(program).program


def test_the_gradient_scale_counts_values_and_levels() -> None:
    program = quantized(scheme=ts.W4A8)
    nodes = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    image = next(node for node in nodes if node.args[0].op == "placeholder")
    zero = int(program.constant(image.args[2]))  # type: ignore[arg-type]  # it is one
    assert gradient_scale(program, [image]) == pytest.approx(1 / math.sqrt(16 * (127 - zero)))
    weight = next(node for node in nodes if node.args[3] == 0)
    per_channel = program.constant(weight.args[0])[0].numel()  # type: ignore[index]  # it is one
    assert gradient_scale(program, [weight]) == pytest.approx(1 / math.sqrt(per_channel * 7))


def test_a_batch_that_is_not_first_stays_dynamic() -> None:
    """As in `nn.TransformerEncoderLayer`, which works on [tokens, batch, channels]."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.linear(x.transpose(0, 1).relu()).transpose(0, 1)
            return result

    x = torch.randn(3, 5, 6)
    program = ts.trace(Turned(), x, dynamic={"x": {0: "batch"}})
    program = ts.PassManager([ts.Quantize(ts.INT8_SYMMETRIC, calibration=[x])]).run(program).program
    grids = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    grid = next(node for node in grids if node.args[0].target is torch.ops.aten.relu.default)
    zero = int(program.constant(grid.args[2]))  # type: ignore[arg-type]  # it is one
    assert zero == 0
    assert gradient_scale(program, [grid]) == pytest.approx(1 / math.sqrt(5 * 6 * 127))
    program.verify()


def test_gradients_of_step_sizes_are_those_of_the_paper_times_the_scale() -> None:
    program = quantized()
    sizes = StepSizes(program, pair_safe=False)
    grid = next(g for g in sizes.grids if g.nodes[0].args[3] == 0)
    scale = sizes.parameters()[grid.name]
    weight = program.constant(grid.nodes[0].args[0])
    assert weight is not None
    chosen = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    (FAKE_QUANTIZE(weight, scale, zero, 0, -127, 127) * chosen).sum().backward()
    ratio = (weight.detach() / scale.detach().reshape(-1, *[1] * (weight.dim() - 1))).double()
    slope = torch.where(ratio.abs() > 127, ratio.sign() * 127, ratio.round() - ratio)
    expected = (slope * chosen).flatten(1).sum(1) * gradient_scale(program, grid.nodes)
    torch.testing.assert_close(scale.grad, expected.float(), rtol=1e-3, atol=1e-6)


def test_step_sizes_are_parameters_while_training_and_buffers_after() -> None:
    program = quantized()
    names = {node.args[1].target for node in program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)}
    sizes = StepSizes(program, pair_safe=False)
    assert names <= program.parameters().keys()
    sizes.freeze()
    assert not names & program.parameters().keys()
    program.verify()


def test_step_sizes_stay_positive_and_within_a_clamp() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU6(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU6())
    program = quantized(model)
    sizes = StepSizes(program, pair_safe=False)
    with torch.no_grad():
        for parameter in sizes.parameters().values():
            parameter.fill_(-1.0)
    sizes.constrain()
    assert all(bool((parameter > 0).all()) for parameter in sizes.parameters().values())
    with torch.no_grad():
        for parameter in sizes.parameters().values():
            parameter.fill_(100.0)
    sizes.constrain()
    bounded = [p for p in sizes.parameters().values() if float(p.detach().max()) < 100]
    assert bounded
    assert all(float(p.detach()) == pytest.approx(6 / 255) for p in bounded)


def test_neighbouring_weights_stay_within_what_a_pair_may_sum_to() -> None:
    program = quantized()
    sizes = StepSizes(program, pair_safe=True)
    with torch.no_grad():
        for grid in sizes.grids:
            sizes.parameters()[grid.name].mul_(0.5)
    sizes.constrain()
    for grid in sizes.grids:
        node = grid.nodes[0]
        weight = program.constant(node.args[0])
        if weight is not None and weight.dim() > 1:
            scale = program.constant(node.args[1])
            assert scale is not None
            steps = (weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).round().clamp(-127, 127)
            rows = steps.movedim(1, -1).reshape(len(steps), -1)
            pairs = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2)).sum(2)
            assert int(pairs.abs().max()) <= 128
