"""A program's text: the same for the same model, in every process."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.printer import operator_name, to_text
from tersor.ir.program import Program
from tersor.ir.sparsity import NM
from tersor.ir.stage import Stage

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.conv(x).relu().clamp(0.5, 1.5)
        left, right = hidden.split([2, 6], dim=1)
        pooled = torch.cat([right, left], dim=1).mean((2, 3)).to(torch.float64)
        return {"logits": self.head(pooled.float()), "pooled": pooled}


TEXT = """\
program Net (float)
  dim batch in 1..
  input %x : float32[batch, 3, 6, 6]
  %conv2d : float32[batch, 8, 6, 6] = aten.conv2d(%x, @conv.weight, @conv.bias, [1, 1], [1, 1])
  %relu : float32[batch, 8, 6, 6] = aten.relu(%conv2d)
  %clamp : float32[batch, 8, 6, 6] = aten.clamp(%relu, 0.5, 1.5)
  %split_with_sizes : (float32[batch, 2, 6, 6], float32[batch, 6, 6, 6]) = aten.split_with_sizes(%clamp, [2, 6], 1)
  %getitem : float32[batch, 2, 6, 6] = getitem(%split_with_sizes, 0)
  %getitem_1 : float32[batch, 6, 6, 6] = getitem(%split_with_sizes, 1)
  %cat : float32[batch, 8, 6, 6] = aten.cat([%getitem_1, %getitem], 1)
  %mean : float32[batch, 8] = aten.mean.dim(%cat, [2, 3])
  %_to_copy : float64[batch, 8] = aten._to_copy(%mean, dtype=float64)
  %_to_copy_1 : float32[batch, 8] = aten._to_copy(%_to_copy, dtype=float32)
  %linear : float32[batch, 4] = aten.linear(%_to_copy_1, @head.weight)
  return logits=%linear, pooled=%_to_copy"""


@cache
def traced(seed: int) -> Program:
    torch.manual_seed(seed)
    return trace(Net(), (torch.randn(2, 3, 6, 6),), dynamic={"x": {0: "batch"}})


def net(seed: int = 1) -> Program:
    return traced(seed).copy()


def test_the_text_of_a_small_model() -> None:
    assert str(net()) == TEXT


def test_the_text_does_not_depend_on_values_or_on_the_trace() -> None:
    assert str(net(1)) == str(net(2)) == TEXT


def test_the_table_of_tensors_is_asked_for() -> None:
    program = net()
    table = to_text(program, tensors=True).removeprefix(TEXT).strip().splitlines()
    assert [line.strip() for line in table] == [
        "tensor @conv.weight : float32[8, 3, 3, 3]",
        "tensor @conv.bias : float32[8]",
        "tensor @head.weight : float32[4, 8]",
    ]


def test_sparsity_is_shown() -> None:
    program = net()
    program.sparsity["head.weight"] = NM(2, 4)
    assert str(program).splitlines()[-1] == "  sparsity @head.weight : NM(n=2, m=4)"


def test_quantization_parameters_are_shown_by_value() -> None:
    program = trace(nn.Linear(2, 5), (torch.ones(1, 2),))
    (linear,) = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    program.add_tensor("in.scale", torch.tensor(1 / 3))
    program.add_tensor("in.zero_point", torch.tensor(-7, dtype=torch.int32))
    program.add_tensor("w.scale", torch.arange(1, 6) / 8)
    program.add_tensor("w.zero_point", torch.zeros(5, dtype=torch.int32))
    with program.graph.inserting_before(linear):
        grids = [program.attribute(name) for name in ("in.scale", "in.zero_point", "w.scale", "w.zero_point")]
        x = program.call(FAKE_QUANTIZE, [linear.args[0], *grids[:2], None, -128, 127], like=linear)
        weight = program.call(FAKE_QUANTIZE, [linear.args[1], *grids[2:], 0, -127, 127], like=linear)
    linear.args = (x, weight, linear.args[2])
    program.stage = Stage.FAKE_QUANT
    text = str(program)
    assert "tersor.fake_quantize(%input_1, scale=0.333333, zero_point=-7, None, -128, 127)" in text
    shown = "@weight, scale=[0.125, 0.25, 0.375, ...], zero_point=[0, 0, 0, ...], 0, -127, 127)"
    assert f"tersor.fake_quantize({shown}" in text


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten.relu.default, "aten.relu"),
        (aten.add.Tensor, "aten.add.Tensor"),
        (FAKE_QUANTIZE, "tersor.fake_quantize"),
        (torch.sym_max, "sym_max"),
    ],
)
def test_operator_names(target: object, name: str) -> None:
    assert operator_name(target) == name
