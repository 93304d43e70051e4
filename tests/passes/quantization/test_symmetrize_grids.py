"""Zero points go, and no value that was within reach is cut off."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, INT8_SYMMETRIC, QuantType, Scheme
from tersor.passes.compare import difference
from tersor.passes.manager import PassManager
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.symmetrize_grids import SymmetrizeGrids


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        y = torch.relu(self.b(y) + y)
        out: Tensor = self.head(y.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def floats() -> Program:
    torch.manual_seed(0)
    return trace(Net(), (torch.randn(2, 3, 8, 8),))


def quantized(program: Program, scheme: Scheme) -> Program:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(2, 3, 8, 8, generator=generator) + 0.5 for _ in range(2)]
    return Quantize(scheme, calibration=batches, correct_bias=False)(program)


def grids(program: Program) -> list[tuple[float, int, object, object]]:
    """Scale, zero point and bounds of each activation grid."""
    nodes = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    found = [n for n in nodes if program.constant(n.args[0]) is None]
    return [
        (float(program.constant(n.args[1])), int(program.constant(n.args[2])), *n.args[4:])  # type: ignore[arg-type]
        for n in found
    ]


def test_every_grid_is_symmetric_and_reaches_as_far(floats: Program) -> None:
    before = quantized(floats, INT8)
    result = SymmetrizeGrids().run(before.copy())
    assert any(zero for _, zero, *_ in grids(before))
    for (scale, zero, low, high), (new, none, *bounds) in zip(grids(before), grids(result.program), strict=True):
        assert (none, bounds) == (0, [-128, 127])
        assert 127 * new >= (high - zero) * scale * (1 - 1e-6)  # type: ignore[operator]
        assert -128 * new <= (low - zero) * scale * (1 - 1e-6)  # type: ignore[operator]
        assert new <= 2.02 * scale
    assert result.modified
    assert "had a zero point" in result.notes[0]


def test_the_numbers_stay_within_a_coarser_step(floats: Program) -> None:
    before = quantized(floats, INT8)
    after = PassManager([SymmetrizeGrids()], progress=False).run(before).program
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert difference([before(image)], [after(image)]).sqnr > 20
    assert difference([floats(image)], [after(image)]).sqnr > 20


def test_symmetric_grids_keep_their_scales(floats: Program) -> None:
    before = quantized(floats, INT8_SYMMETRIC)
    after = SymmetrizeGrids()(before)
    assert [scale for scale, *_ in grids(after)] == [scale for scale, *_ in grids(before)]
    assert {tuple(bounds) for _, _, *bounds in grids(after)} == {(-128, 127)}
    again = SymmetrizeGrids().run(after.copy())
    assert not again.modified


def test_narrow_grids_are_left_to_the_target_to_refuse(floats: Program) -> None:
    narrow = Scheme(activation=QuantType(4, symmetric=False))
    before = quantized(floats, narrow)
    assert grids(SymmetrizeGrids()(before)) == grids(before)


def test_weights_and_float_programs_are_left(floats: Program) -> None:
    assert not SymmetrizeGrids().run(floats.copy()).modified
    before = quantized(floats, INT8)
    after = SymmetrizeGrids()(before)
    weights = [name for name in before.tensors() if "weight" in name and name.endswith("scale")]
    assert weights
    for name in weights:
        assert torch.equal(before.tensor(name), after.tensor(name))


@cache
def one_relu() -> Program:
    return trace(nn.ReLU(), (torch.randn(4),))


@settings(max_examples=60, deadline=None)
@given(st.integers(-128, 127), st.floats(1e-6, 1e3), st.sampled_from([-128, -127]))
def test_the_new_grid_holds_the_old_range(zero: int, scale: float, low: int) -> None:
    """Exact arithmetic on the ends of the range, and every old value is at most half a new step away."""

    program = one_relu().copy()
    (source,) = program.placeholders
    names = [program.add_tensor(n, t) for n, t in (("s", torch.tensor(scale)), ("z", torch.tensor(float(zero))))]
    relu = program.outputs[0]
    with program.graph.inserting_before(relu):
        tensors = [program.attribute(name) for name in names]
        node = program.call(FAKE_QUANTIZE, (source, *tensors, None, low, 127), like=source)
    relu.replace_input_with(source, node)
    SymmetrizeGrids().run(program)
    new = float(program.tensor("s"))
    old = (np.arange(low, 128, dtype=np.float64) - zero) * float(np.float32(scale))
    steps = np.clip(np.round(old / new), -128, 127)
    assert np.abs(steps * new - old).max() <= new * (0.5 + 1e-4)
    assert float(program.tensor("z")) == 0


class Shifted(nn.Module):
    """A product with a constant that is not symmetric, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("factor", torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x) * self.factor)
        return out


def test_a_constant_operand_is_made_symmetric_too() -> None:
    torch.manual_seed(0)
    before = quantized(trace(Shifted(), (torch.randn(2, 3, 8, 8),)), INT8)
    after = PassManager([SymmetrizeGrids()]).run(before).program
    nodes = after.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    zeros = [after.constant(node.args[2]) for node in nodes]
    assert any(node.name == "factor_quantized" for node in nodes)
    assert not any(bool(zero.any()) for zero in zeros if zero is not None)


def test_a_grid_that_did_the_work_of_a_relu_gets_one(floats: Program) -> None:
    """As files quantized elsewhere have it: the relu is gone, since the grid begins at zero."""
    before = quantized(floats, INT8)
    for node in before.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
        before.replace(node, node.args[0])
    before.changed()
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    result = SymmetrizeGrids().run(before.copy())
    result.program.changed()
    assert difference([before(image)], [result.program.verify()(image)]).sqnr > 20
    assert any("relu does that now" in note for note in result.notes)


def test_no_relu_where_nothing_is_below_zero(floats: Program) -> None:
    result = SymmetrizeGrids().run(quantized(floats, INT8))
    assert len(result.program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)) == 2
