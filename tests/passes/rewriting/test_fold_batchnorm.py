from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.program import REPLACES, Program
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm

aten = torch.ops.aten
BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def norm(channels: int, spatial: int = 2, *, shift: bool = True, affine: bool = True) -> nn.Module:
    """Batch norm with statistics and parameters that change everything, or nothing but the scale."""
    module = BATCH_NORMS[spatial](channels, affine=affine)
    assert module.running_var is not None
    assert module.running_mean is not None
    module.running_var.uniform_(0.3, 3)
    if affine:
        nn.init.uniform_(module.weight, -2, 2)
    if shift:
        module.running_mean.normal_()
        if affine:
            nn.init.normal_(module.bias)
    return module


def image(channels: int, spatial: int = 2) -> Tensor:
    return torch.randn(3, channels, *[7] * spatial, dtype=torch.float64)


def folded(model: nn.Module, x: Tensor) -> Program:
    """Fold in float64, check that the outputs stay and the program given is left alone."""
    model = model.double().eval()
    program = trace(model, (x,))
    before = {name: (tensor, tensor._version, tensor.clone()) for name, tensor in program.tensors().items()}
    text = str(program)
    result = FoldBatchNorm()(program)
    torch.testing.assert_close(result(x), model(x), rtol=1e-10, atol=1e-10)
    assert str(program) == text
    for name, (tensor, version, values) in before.items():
        assert program.tensor(name) is tensor
        assert tensor._version == version
        assert torch.equal(tensor, values)
    return result


def norms(program: Program) -> int:
    return len(program.graph.find_nodes(op="call_function", target=aten.batch_norm.default))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_batch_norm_becomes_part_of_the_convolution_before_it() -> None:
    model = Branches(lambda m, x: m.n(m.c(x)).relu())
    model.c = nn.Conv2d(4, 4, 3, bias=False)
    result = folded(model, image(4))
    assert str(result).splitlines()[2:] == [
        "  %conv2d : float64[3, 4, 5, 5] = aten.conv2d(%x, @c.weight, @c.bias)",
        "  %relu : float64[3, 4, 5, 5] = aten.relu(%conv2d)",
        "  return output=%relu",
    ]
    (layer,) = result.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    assert layer.meta[REPLACES] == "batch_norm"
    assert "origin" in layer.meta
    assert sorted(result.parameters()) == ["c.bias", "c.weight"]
    assert result.history[-1].notes == ("batch norms folded: 1",)


BEFORE: list[tuple[Callable[[], nn.Module], int]] = [
    (lambda: nn.Linear(4, 6), 0),
    (lambda: nn.Linear(4, 6, bias=False), 0),
    (lambda: nn.Conv1d(4, 6, 3, padding=1), 1),
    (lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), 2),
    (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same"), 2),
    (lambda: nn.Conv3d(4, 6, 2), 3),
    (lambda: nn.ConvTranspose1d(4, 6, 3), 1),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2), 2),
    (lambda: nn.ConvTranspose3d(4, 6, 2, bias=False), 3),
]


@pytest.mark.parametrize(("build", "spatial"), BEFORE)
def test_every_layer_before(build: Callable[[], nn.Module], spatial: int) -> None:
    layer = build()
    channels = int(getattr(layer, "out_channels", 6))
    assert norms(folded(nn.Sequential(layer, norm(channels, spatial)), image(4, spatial))) == 0


def test_batch_norm_without_parameters_folds() -> None:
    assert norms(folded(nn.Sequential(nn.Conv2d(4, 6, 3), norm(6, affine=False)), image(4))) == 0


AFTER: list[tuple[Callable[[], nn.Module], int, bool, bool]] = [
    (lambda: nn.Linear(4, 6), 0, True, True),
    (lambda: nn.Linear(4, 6, bias=False), 0, True, True),
    (lambda: nn.Conv1d(4, 6, 3), 1, True, True),
    (lambda: nn.Conv2d(4, 6, 3, groups=2), 2, True, True),
    (lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False), 2, True, True),
    (lambda: nn.Conv2d(4, 6, 3, padding=1), 2, True, False),
    (lambda: nn.Conv2d(4, 6, 3, padding="same"), 2, True, False),
    (lambda: nn.Conv2d(4, 6, 3, padding=1), 2, False, True),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), 2, True, False),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), 2, False, True),
]


@pytest.mark.parametrize(("build", "spatial", "shift", "folds"), AFTER)
def test_every_layer_after(build: Callable[[], nn.Module], spatial: int, shift: bool, folds: bool) -> None:
    result = folded(nn.Sequential(norm(4, spatial, shift=shift), build()), image(4, spatial))
    assert norms(result) == (0 if folds else 1)


class Branches(nn.Module):
    def __init__(self, between: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.c, self.d, self.n, self.m = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), norm(4), norm(4)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        return self.between(self, x)


def test_batch_norms_in_a_row_fold_into_one_layer() -> None:
    assert norms(folded(Branches(lambda m, x: m.n(m.m(m.c(x)))), image(4))) == 0


def test_a_batch_norm_that_several_layers_read_folds_into_each() -> None:
    assert norms(folded(Branches(lambda m, x: m.c(m.n(x)) + m.d(m.n(x))), image(4))) == 0
    shared = folded(Branches(lambda m, x: (lambda y: m.c(y) + m.d(y))(m.n(x))), image(4))
    assert norms(shared) == 0


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: (lambda y: m.n(y) + y)(m.c(x)),
        lambda m, x: m.n(x),
        lambda m, x: m.n(m.c(x).relu()),
        lambda m, x: (lambda y: m.c(y) + y[:, :, :5, :5])(m.n(x)),
    ],
)
def test_batch_norm_that_no_layer_can_take_stays_and_is_named(between: Callable[[Any, Tensor], Any]) -> None:
    result = folded(Branches(between), image(4))
    assert norms(result) == 1
    (note,) = result.history[-1].notes
    assert note == (
        "batch norms left: 1, with no convolution or linear layer beside it that could take it: %batch_norm"
    )


def test_a_norm_over_another_axis_than_the_layers_channels_stays() -> None:
    model = nn.Sequential(nn.Linear(5, 4), norm(4, 1))
    assert norms(folded(model, torch.randn(3, 4, 5, dtype=torch.float64))) == 1


def test_training_batch_norm_stays() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm(4)).eval()
    program = trace(model, (torch.randn(3, 2, 7, 7),)).train()
    result = FoldBatchNorm().run(program.copy())
    assert not result.modified
    assert result.notes == ("batch norms left: 1, in training mode: %batch_norm",)
    assert str(result.program) == str(program)


def test_a_layer_used_twice_gets_weights_of_its_own_for_each_norm() -> None:
    model = Branches(lambda m, x: m.n(m.c(x)) + m.m(m.c(x)) + m.c(x))
    result = folded(model, image(4))
    assert norms(result) == 0
    assert torch.equal(result.tensor("c.weight"), model.c.weight)
    assert sorted(result.parameters()) == ["c.bias", "c.bias_1", "c.bias_2", "c.weight", "c.weight_1", "c.weight_2"]


def test_tied_weights_are_not_folded_twice() -> None:
    model = Branches(lambda m, x: m.n(m.c(x)) + m.m(m.d(x)))
    model.d.weight = model.c.weight
    assert norms(folded(model, image(4))) == 0


def test_weights_stay_of_their_kind_and_dtype() -> None:
    model = Branches(lambda m, x: m.n(m.c(x))).eval()
    model.c.weight.requires_grad_(False)
    x = image(4).float()
    result = FoldBatchNorm()(trace(model, (x,)))
    weight = result.tensor("c.weight")
    assert isinstance(weight, nn.Parameter)
    assert weight.dtype == torch.float32
    assert not weight.requires_grad
    torch.testing.assert_close(result(x), model(x), rtol=1e-5, atol=1e-5)
    gradient = torch.autograd.grad(result(x).sum(), [result.tensor("c.bias")])
    torch.testing.assert_close(gradient[0], torch.full((4,), 3.0 * 5 * 5))


def test_statistics_that_the_model_computes_are_left_to_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.batch_norm(m.c(x), x.mean((0, 2, 3)), x.var((0, 2, 3)))

    result = folded(Branches(forward), image(4))
    assert result.history[-1].notes[0].startswith("batch norms left: 1, with statistics that are computed")
