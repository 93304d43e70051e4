"""GPTQ against the slow method it speeds up: one weight at a time, the rest solved anew by least squares."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import W4A8
from tersor.ir.sparsity import NM, Block, Pattern, Unstructured
from tersor.ir.verifier import verify
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.gptq import GPTQ, better_rounding, output_error, round_together
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.insert_weight_blocks import InsertWeightBlocks
from tersor.passes.quantization.learn_rounding import LearnRounding
from tersor.passes.quantization.weight_grid import WeightGrid, input_rows, quantized_layers
from tersor.passes.sparsity.sparsify import Sparsify

DAMPING = 0.01


def problem(seed: int, rows: int = 4, columns: int = 10, bits: int = 3) -> tuple[WeightGrid, Tensor]:
    """Random weights on a per-row grid, and the mean x x^T of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    x = (torch.randn(200, columns, generator=generator) @ mixing).double()
    weight = torch.randn(rows, columns, generator=generator)
    top = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(1, keepdim=True) / top).expand(rows, columns)
    return WeightGrid(weight, scale, torch.zeros(rows, columns, dtype=torch.int32), -top, top), x.T @ x / 200


def solved_anew(grid: WeightGrid, gram: Tensor) -> Tensor:
    """Round the column with the largest H[i, i]; let all later columns minimize the damped error exactly; go on."""
    hessian = gram + torch.eye(gram.shape[0], dtype=torch.float64) * DAMPING * gram.diagonal().mean()
    order = gram.diagonal().argsort(descending=True).tolist()
    left = grid.weight.double().clone()
    for place, column in enumerate(order):
        target = left.clone()
        left[:, column] = grid.rounded(left[:, column].float(), column).double()
        rest = order[place + 1 :]
        if rest:
            error = (left[:, column] - target[:, column]).unsqueeze(1)
            pull = error * hessian[column, rest]
            left[:, rest] = target[:, rest] - torch.linalg.solve(hessian[rest][:, rest], pull.T).T
    return left.float()


@pytest.mark.parametrize("seed", range(6))
def test_it_gives_what_solving_anew_after_each_column_gives(seed: int) -> None:
    grid, gram = problem(seed)
    assert torch.allclose(round_together(grid, gram, DAMPING), solved_anew(grid, gram), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_promised_zeros_stay_and_the_others_take_up_what_they_would_have(seed: int) -> None:
    grid, gram = problem(seed, columns=24, bits=5)
    zeros = torch.rand(grid.weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    grid = dataclasses.replace(grid, weight=grid.weight.masked_fill(zeros, 0), zeros=zeros)
    found = round_together(grid, gram, DAMPING)
    assert torch.allclose(found, solved_anew(grid, gram), atol=1e-5)
    assert not found[zeros].any()
    free = round_together(dataclasses.replace(grid, zeros=None), gram, DAMPING)
    assert free[zeros].any(), "without a promise they move, so that the case is one"


def test_lots_of_columns_change_nothing() -> None:
    grid, gram = problem(0, rows=3, columns=300)
    assert torch.allclose(round_together(grid, gram, DAMPING), solved_anew(grid, gram), atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_no_worse_than_the_nearest_and_no_better_than_the_best_of_all(seed: int) -> None:
    grid, gram = problem(seed, rows=1, columns=5, bits=2)
    plain, found, _ = better_rounding(grid, gram, DAMPING)
    scale = float(grid.scale[0, 0])
    best = min(
        output_error(torch.tensor([steps]) * scale - grid.weight, gram)
        for steps in itertools.product((-1, 0, 1), repeat=5)
    )
    assert best - 1e-6 <= found <= plain + 1e-9


def test_an_input_that_is_always_zero_and_inputs_that_are_equal_are_no_trouble() -> None:
    grid, gram = problem(1)
    gram[2], gram[:, 2] = 0, 0
    gram[4], gram[:, 4] = gram[5], gram[:, 5].clone()
    values = round_together(grid, gram, DAMPING)
    assert bool(torch.isfinite(values).all())
    assert torch.equal(values, grid.rounded(values))


class Net(nn.Module):
    """A convolution, one in groups, and a linear of more than two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Conv2d(8, 8, 3, groups=8)
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(torch.relu(self.b(torch.relu(self.a(x)))))
        return y


def net() -> tuple[Program, list[Tensor]]:
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 12, 12) for _ in range(3)]
    return trace(Net().eval(), (batches[0],)), batches


def test_rows_times_weights_are_the_outputs_of_the_layer() -> None:
    program, batches = net()
    quantized = Calibrate(batches)(InsertFakeQuant(W4A8)(program))
    layers = {layer.node.name: layer.node for layer in quantized_layers(quantized)}
    value = torch.randn(2, 3, 12, 12)
    rows = input_rows(layers["conv2d"], value)
    assert rows is not None
    weight, bias = program.tensor("a.weight").detach(), program.tensor("a.bias").detach()
    found = (rows @ weight.flatten(1).T + bias).reshape(2, 6, 6, 8).permute(0, 3, 1, 2)
    assert torch.allclose(found, nn.functional.conv2d(value, weight, bias, 2, 1), atol=1e-4)
    assert input_rows(layers["conv2d_1"], torch.randn(2, 8, 6, 6)) is None


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rows_of_convolutions_are_what_the_filters_meet(rank: int) -> None:
    torch.manual_seed(rank)
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = kind(3, 4, (2, 3, 2)[:rank], stride=(2, 1, 1)[:rank], padding=(1, 0, 1)[:rank], dilation=(1, 2, 1)[:rank])
    x = torch.randn(2, 3, *(7, 6, 5)[:rank])
    program = Calibrate([x])(InsertFakeQuant(W4A8)(trace(nn.Sequential(layer).eval(), (x,))))
    (found,) = quantized_layers(program)
    rows = input_rows(found.node, x)
    assert rows is not None
    assert layer.bias is not None
    expected = layer(x)
    products = (rows @ layer.weight.flatten(1).T + layer.bias).unflatten(0, (2, -1)).transpose(1, 2)
    assert torch.allclose(products.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4), Block(2, 1, 0.5)])
@pytest.mark.parametrize("kind", [GPTQ, LearnRounding])
def test_sparse_weights_stay_sparse_as_promised(pattern: Pattern, kind: type[GPTQ | LearnRounding]) -> None:
    torch.manual_seed(0)
    mixing = torch.randn(32, 32)
    batches = [torch.randn(16, 32) @ mixing for _ in range(3)]
    program = trace(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval(), (batches[0],))
    sparse = Sparsify(pattern)(program)
    quantized = Calibrate(batches)(InsertFakeQuant(W4A8)(sparse))
    rounded = kind(batches)(quantized)
    assert rounded.history[-1].notes != quantized.history[-1].notes
    assert rounded.sparsity
    verify(rounded)


@pytest.mark.parametrize("memory", [1, 1 << 28])
def test_rounded_weights_stay_on_their_grids_and_the_output_improves(memory: int) -> None:
    program, batches = net()
    plain = Calibrate(batches)(InsertFakeQuant(W4A8)(program))
    rounded = GPTQ(batches, memory=memory)(plain)
    assert "of 2 weights" in rounded.history[-1].notes[0]
    for node in rounded.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        weight = rounded.constant(node.args[0])
        if weight is not None and weight.shape[1:2] != (1,):
            again = node.target(weight, *(rounded.constant(a) for a in node.args[1:3]), *node.args[3:])
            assert torch.allclose(again, weight, atol=1e-6)
    with torch.no_grad():
        errors = [sum(float((p(b) - program(b)).square().sum()) for b in batches) for p in (plain, rounded)]
    assert errors[1] < errors[0]


def test_blocks_are_rounded_together_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32))
    mixing = torch.randn(96, 96) / 10
    batches = [torch.randn(64, 96) @ mixing for _ in range(4)]
    program = trace(model, (batches[0],))
    plain = InsertWeightBlocks()(program)
    rounded = GPTQ(batches)(plain)
    with torch.no_grad():
        errors = [float((p(batches[0]) - program(batches[0])).square().sum()) for p in (plain, rounded)]
    assert errors[1] < 0.5 * errors[0]


def test_bad_options_and_data_are_refused() -> None:
    program, batches = net()
    plain = Calibrate(batches)(InsertFakeQuant(W4A8)(program))
    with pytest.raises(CalibrationError, match="missing"):
        GPTQ(None)(plain)
    with pytest.raises(CalibrationError, match="empty"):
        GPTQ([])(plain)
    with pytest.raises(CalibrationError, match="not finite"):
        GPTQ([torch.full((4, 3, 12, 12), float("nan"))])(plain)
    with pytest.raises(PassError, match="positive"):
        GPTQ(damping=0)
