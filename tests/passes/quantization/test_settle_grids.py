"""Settled grids: all forms of a kernel agree on all 65,536 pairs, and finding that out looks at few of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.proofs import refute_pairs
from tersor.passes.quantization import settle_grids
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.kernel_forms import FORMS, PairGrids, agree
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.settle_grids import SettleGrids

aten = torch.ops.aten
OPERATORS = [aten.add.Tensor, aten.mul.Tensor]


def differs_somewhere(operator: object, grids: PairGrids) -> bool:
    """Every form against the definition on every pair."""
    definition, *others = FORMS[operator]
    return any(
        refute_pairs(lambda a, b: definition(grids, a, b), lambda a, b, form=form: form(grids, a, b)) is not None  # type: ignore[misc]
        for form in others
    )


scales = st.tuples(st.floats(2.0**-8, 8.0, width=32), st.floats(2.0**-8, 8.0, width=32), st.floats(0.1, 4.0))
points = st.tuples(*[st.integers(-128, 127)] * 3)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@settings(max_examples=60, deadline=None)
@given(scales, points, st.integers(-128, 0), st.sampled_from([1.0, 1.5, 3.0, 16.0]))
def test_forms_agree_exactly_where_all_pairs_say_so(
    operator: object, given_: tuple[float, float, float], zeros: tuple[int, int, int], low: int, spread: float
) -> None:
    """Inputs of related scales, which have many ties, among them."""
    first, second = given_[0], given_[0] * spread if spread > 1 else given_[1]
    widest = first * second * 100 if operator is aten.mul.Tensor else max(first, second)
    grids = PairGrids(torch.tensor([first, second, given_[2] * widest]), zeros, low, 127)
    assert agree(operator, grids) == (not differs_somewhere(operator, grids))


class Net(nn.Module):
    """Sums of sums, and a product, of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = (layer(x) for layer in self.layers)
        y: Tensor = nn.functional.relu6((a + b) * c + d) + a
        return y


def calibrated(seed: int) -> Program:
    torch.manual_seed(seed)
    x = torch.randn(2, 4, 6, 6)
    return Calibrate([x])(InsertFakeQuant(coverage=Coverage.EVERYTHING)(trace(Net(), (x,))))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_settled_is_settled(seed: int) -> None:
    """Another run moves nothing, and says nothing is open."""
    program = SettleGrids()(calibrated(seed))
    again = SettleGrids()(program)
    assert again.history[-1].notes == ("4 sums and products, 0 scales moved",)
    assert str(again) == str(program)


def test_what_may_not_move_is_left_and_named() -> None:
    program = next(program for program in map(calibrated, range(20)) if moved(program))
    left = SettleGrids(most=0)(program)
    assert str(left) == str(program)
    assert left.history[-1].notes[1].startswith("kernels may part by a step: ")


def moved(program: Program) -> bool:
    return "0 scales moved" not in SettleGrids()(program).history[-1].notes[0]


def test_what_cannot_be_settled_stays_the_same_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_grids, "agree", lambda operator, grids: False)
    program = calibrated(0)
    before = program.tensors()
    result = SettleGrids(most=2).run(program)
    assert not result.modified
    assert all(result.program.tensors()[name] is tensor for name, tensor in before.items())
