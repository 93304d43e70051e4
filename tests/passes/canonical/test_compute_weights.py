"""Weights computed from parameters: what PyTorch's own parametrizations give, once, on every target."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import utils

from tersor.backends.base import Artifact
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.sparsity import Unstructured
from tersor.lowering import lower
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.training.finetune import Finetune

Parametrize = Callable[[nn.Module], nn.Module]
SIGNAL = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
KINDS: dict[str, Parametrize] = {
    "weight norm": utils.parametrizations.weight_norm,
    "weight norm along another axis": lambda layer: utils.parametrizations.weight_norm(layer, dim=1),
    "spectral norm": utils.parametrizations.spectral_norm,
    "orthogonal": utils.parametrizations.orthogonal,
    "older weight norm": utils.weight_norm,
    "older spectral norm": utils.spectral_norm,
}


class Net(nn.Module):
    """Two convolutions and a linear, each with its weight computed."""

    def __init__(self, kind: Parametrize) -> None:
        super().__init__()
        with warnings.catch_warnings():  # torch warns of its older functions
            warnings.simplefilter("ignore", FutureWarning)
            self.first = kind(nn.Conv1d(3, 8, 3, padding=1))
            self.second = kind(nn.Conv1d(8, 8, 3, padding=2, dilation=2))
            self.head = kind(nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(2))


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = Net(KINDS[kind])
    with torch.no_grad():  # no parameter is what it was made as
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        model(SIGNAL)  # older functions leave the weight on the module while it runs
        return {name: getattr(model, name).weight for name in ("first", "second", "head")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrized_weight_is_the_weight_that_pytorch_computes(kind: str) -> None:
    model = net(kind)
    program = Canonicalize()(trace(model, SIGNAL))
    for name, weight in weights(model).items():
        found = program.tensor(f"{name}.weight")
        assert isinstance(found, nn.Parameter)
        torch.testing.assert_close(found.detach(), weight.detach(), rtol=1e-6, atol=1e-7)
    assert sorted(program.tensors()) == sorted(
        f"{name}.{leaf}" for name in weights(model) for leaf in ("bias", "weight")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_lowered_in_float_and_in_integers(kind: str, tmp_path: Path) -> None:
    model = net(kind)
    program = trace(model, SIGNAL)
    floats = lower(program, "onnxruntime", tmp_path / "float")
    torch.testing.assert_close(floats.run(SIGNAL), model(SIGNAL).detach(), rtol=1e-5, atol=1e-5)
    quantized = Quantize(calibration=[SIGNAL])(program)
    artifact: Artifact = lower(quantized, "onnxruntime", tmp_path / "int8")
    assert artifact.report.integer_share == 1.0
    everything = Quantize(calibration=[SIGNAL], coverage=Coverage.EVERYTHING)(program)
    lower(everything, "neon", tmp_path / "neon")


def call(function: Callable[[Any, Tensor], Any], **tensors: Tensor) -> Program:
    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_parameter(name, nn.Parameter(tensor))

        def forward(self, x: Tensor) -> Any:
            return function(self, x)

    return trace(Function(), torch.randn(2, 4, generator=torch.Generator().manual_seed(1)))


def matrix(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def test_a_low_rank_update_is_merged() -> None:
    program = call(
        lambda m, x: F.linear(x, m.weight + 0.5 * (m.up @ m.down)),
        weight=matrix(6, 4),
        up=matrix(6, 2),
        down=matrix(2, 4),
    )
    (weight,) = Canonicalize()(program).parameters().values()
    torch.testing.assert_close(weight.detach(), matrix(6, 4) + 0.5 * (matrix(6, 2) @ matrix(2, 4)))


def test_a_layer_that_is_called_twice_has_one_weight() -> None:
    layer = utils.parametrizations.weight_norm(nn.Linear(4, 4))
    program = Canonicalize()(trace(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4)))
    first, second = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert first.args[1].target == second.args[1].target
    assert len(set(map(id, program.parameters().values()))) == 2


STAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "a parameter that is read as it is, too": lambda m, x: (F.linear(x, m.w * 2), F.linear(x, m.w)),
    "a result that is larger": lambda m, x: x @ (m.row * m.column),
    "a view": lambda m, x: x.sum() * m.w.t()[:, :3],
    "the whole of a lookup": lambda m, x: x + F.embedding(torch.tensor([1]), m.w),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_stays_computed(case: str) -> None:
    program = call(STAYS[case], w=matrix(6, 4), row=matrix(1, 6), column=matrix(4, 1))
    assert {"w", "row", "column"} & set(program.parameters()) == set(Canonicalize()(program).parameters())


def test_promised_zeros_and_later_training_keep_the_formula() -> None:
    dense = call(lambda m, x: F.linear(x, m.w * 2), w=matrix(6, 4).relu())
    assert set(Canonicalize(keep_training=True)(dense).parameters()) == {"w"}
    dense.sparsity["w"] = Unstructured(0.9)
    assert set(Canonicalize()(dense).parameters()) == {"w"}


def test_what_is_computed_trains() -> None:
    program = Canonicalize()(trace(net("weight norm"), SIGNAL))
    before = program.tensor("first.weight").detach().clone()
    batches = [(SIGNAL, torch.zeros(2, 4))]
    trained = Finetune(batches, F.mse_loss, epochs=1)(program)
    assert not torch.equal(trained.tensor("first.weight"), before)


class Standardized(nn.Conv2d):
    """Weight standardization as image models write it: batch norm of the weight, without statistics."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_weight_standardization_stays_itself_in_training_and_in_inference() -> None:
    torch.manual_seed(0)
    model, x = Standardized(3, 4, 3), torch.randn(2, 3, 8, 8)
    program = trace(model, x)
    expected = model(x).detach()
    for mode in (True, False):
        torch.testing.assert_close(program.copy().train(mode)(x).detach(), expected, rtol=1e-5, atol=1e-5)
    (weight,) = (found for found in Canonicalize()(program).parameters().values() if found.dim() == 4)
    torch.testing.assert_close(weight.detach().mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-6)
