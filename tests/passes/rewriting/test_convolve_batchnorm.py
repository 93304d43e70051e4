"""A batch norm as a depthwise convolution gives what it gave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.frontends.torch_export import trace
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.manager import PassManager
from tersor.passes.rewriting.convolve_batchnorm import ConvolveBatchNorm

aten = torch.ops.aten


class PreActivation(nn.Module):
    """DenseNet's order: batch norm, relu, convolution, and what came in beside what came out."""

    def __init__(self, spatial: int, *, affine: bool = True) -> None:
        super().__init__()
        norm, conv = (nn.BatchNorm2d, nn.Conv2d) if spatial == 2 else (nn.BatchNorm1d, nn.Conv1d)
        self.first, self.norm, self.conv = conv(3, 5, 1), norm(5, affine=affine), conv(5, 4, 3, padding=1)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.3, 3)
        if affine:
            nn.init.uniform_(self.norm.weight, -2, 2)
            nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


@pytest.mark.parametrize(("spatial", "affine"), [(1, True), (2, True), (2, False)])
def test_the_outputs_stay(spatial: int, affine: bool) -> None:
    torch.manual_seed(0)
    model = PreActivation(spatial, affine=affine).double().eval()
    x = torch.randn(2, 3, *[6] * spatial, dtype=torch.float64)
    result = ConvolveBatchNorm().run(trace(model, (x,)))
    assert result.modified
    assert not result.program.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    result.program.verify()
    torch.testing.assert_close(result.program(x), model(x), rtol=1e-10, atol=1e-10)


def test_one_that_trains_stays() -> None:
    program = trace(PreActivation(2).eval(), (torch.randn(2, 3, 6, 6),))
    program.train()
    assert not ConvolveBatchNorm().run(program).modified


def test_all_of_it_becomes_integer() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 6, 6) for _ in range(2)]
    quantize = ts.Quantize(calibration=batches, coverage=ts.Coverage.EVERYTHING)
    program = trace(PreActivation(2).eval(), (batches[0],))
    result = PassManager([quantize, ts.LowerToInteger()], progress=False).run(program).program
    assert not float_islands(result)
