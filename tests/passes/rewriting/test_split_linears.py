"""A linear and the cut of its result, against one linear a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_PER_TENSOR, INT8_SYMMETRIC, Scheme
from tersor.ir.sparsity import NM
from tersor.passes.manager import PassManager
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.rewriting.split_linears import SplitLinears

aten = torch.ops.aten
Cut = Callable[[Tensor], Sequence[Tensor]]


class Net(nn.Module):
    def __init__(self, cut: Cut, bias: bool = True) -> None:
        super().__init__()
        self.joined, self.out = nn.Linear(8, 24, bias=bias), nn.Linear(8, 8)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cut(self.joined(x)))
        out: Tensor = self.out(sum(part[..., :8] for part in parts))
        return out


def quantized(cut: Cut, scheme: Scheme = INT8_SYMMETRIC, bias: bool = True) -> Program:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    return Quantize(scheme, calibration=[x], correct_bias=False)(trace(Net(cut, bias), (x,)))


def linears(program: Program) -> list[tuple[int, ...]]:
    nodes = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    return [tuple(node.meta["val"].shape) for node in nodes]


CUTS: dict[str, tuple[Cut, list[int]]] = {
    "split": (lambda y: y.split(8, -1), [8, 8, 8]),
    "sizes": (lambda y: y.split([16, 8], 2), [16, 8]),
    "chunk": (lambda y: y.chunk(3, -1), [8, 8, 8]),
    "some": (lambda y: y.split(8, -1)[1:], [8, 8]),
}


@pytest.mark.parametrize("scheme", [INT8_SYMMETRIC, INT8_PER_TENSOR], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("name", CUTS)
def test_each_part_has_a_linear_and_nothing_else_changes(name: str, scheme: Scheme) -> None:
    cut, sizes = CUTS[name]
    before = quantized(cut, scheme)
    result = PassManager([SplitLinears()], progress=False).run(before).program
    assert sorted(linears(result)) == sorted([(2, 5, size) for size in sizes] + [(2, 5, 8)])
    assert not result.graph.find_nodes(op="call_function", target=aten.split_with_sizes.default)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(result(x), before(x), rtol=1e-5, atol=1e-6)


def test_without_a_bias() -> None:
    before = quantized(CUTS["sizes"][0], bias=False)
    after = SplitLinears()(before)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-6)


LEFT: dict[str, Cut] = {
    "another dimension": lambda y: [part.sum(1, keepdim=True) for part in y.split([2, 3], 1)],
    "read whole as well": lambda y: [*y.split(8, -1), y],
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name: str) -> None:
    assert not SplitLinears().run(quantized(LEFT[name])).modified


def test_float_linears_are_left() -> None:
    x = torch.randn(2, 5, 8)
    assert not SplitLinears().run(trace(Net(CUTS["chunk"][0]), (x,))).modified


def test_sparsity_is_carried_to_the_parts() -> None:
    program = quantized(CUTS["sizes"][0])
    groups = program.tensor("joined.weight").detach().reshape(-1, 4)
    sparse = groups.scatter(1, groups.abs().argsort(1)[:, :2], 0).reshape(24, 8)
    program.set_tensor("joined.weight", sparse)
    program.sparsity["joined.weight"] = NM(2, 4)
    after = SplitLinears()(program)
    assert sorted(after.sparsity.items()) == [("joined.weight_rows_0", NM(2, 4)), ("joined.weight_rows_16", NM(2, 4))]
