"""Snapped scales: the multipliers are short, multiply-and-shift is proven equal, and the weights lose little."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError
from tersor.ir.integer_operators import INT_CONV, INT_LINEAR, REQUANTIZE
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.proofs import Requantization
from tersor.ir.quantization import INT8, INT8_PER_TENSOR, INT8_SYMMETRIC, Scheme
from tersor.ir.requantize_forms import MultiplyShiftEven, mantissa_and_shift
from tersor.passes.compare import difference
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.quantization.integer_grid import IntegerGrid
from tersor.passes.quantization.observers import pair_safe_scales
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.snap_scales import SnapScales, exact_bits


class Net(nn.Module):
    """Convolutions plain, grouped and depthwise, a residual, clamps, and linears with and without an output grid."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, groups=4, bias=False, padding=1)
        self.c = nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.d = nn.Linear(16, 24)
        self.e = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x + torch.nn.functional.relu6(self.c(self.b(x)))
        x = torch.relu(self.d(x.mean((2, 3))))
        y: Tensor = self.e(x)
        return y


def images(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 10, 10, generator=generator) for _ in range(count)]


def quantized(scheme: Scheme = INT8, coverage: Coverage = Coverage.EVERYTHING, smooth: bool = False) -> Program:
    torch.manual_seed(0)
    data = images(4)
    program = trace(Net().eval(), (data[0],))
    return Quantize(scheme, calibration=data, coverage=coverage, smooth=smooth)(program)


def requantized_layers(program: Program) -> list[tuple[fx.Node, Requantization]]:
    found = []
    for node in program.graph.find_nodes(op="call_function", target=REQUANTIZE):
        assert isinstance(node.args[0], fx.Node)
        if node.args[0].target in (INT_CONV, INT_LINEAR):
            found.append((node, Requantization.of(program, node)))
    return found


def weights(program: Program) -> list[fx.Node]:
    """The fake-quantize nodes of weights."""
    nodes = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    return [node for node in nodes if program.constant(node.args[0]) is not None]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("scheme", [INT8, INT8_SYMMETRIC, INT8_PER_TENSOR], ids=["int8", "symmetric", "per tensor"])
def test_multiply_and_shift_is_proven_equal_for_every_channel(scheme: Scheme, smooth: bool) -> None:
    program = quantized(scheme, smooth=smooth)
    before = requantized_layers(LowerToInteger()(program))
    after = requantized_layers(LowerToInteger()(SnapScales()(program)))
    assert len(after) == len(before) == 5
    assert max(int(mantissa_and_shift(case.multiplier)[0].max()) for _, case in before) > 1 << 20
    for node, case in after:
        form = MultiplyShiftEven.of(case)
        assert case.refute(form) is None, node
        grid = IntegerGrid("", case.zero_point, case.quant_min, case.quant_max)
        assert (form.multiplier <= 1 << exact_bits(case.multiplier, grid).numpy()).all()


def test_the_multipliers_are_as_short_as_asked() -> None:
    for bits in (4, 6):
        for _, case in requantized_layers(LowerToInteger()(SnapScales(bits)(quantized()))):
            mantissa, _ = mantissa_and_shift(case.multiplier)
            assert int(mantissa.max()) < 1 << bits


def test_scales_move_by_a_step_of_the_mantissa_and_weights_lose_little() -> None:
    program = quantized(coverage=Coverage.FASTEST)
    snapped = SnapScales()(program)
    for old, new in zip(weights(program), weights(snapped), strict=True):
        scales = [p.constant(node.args[1]) for p, node in ((program, old), (snapped, new))]
        assert scales[0] is not None
        assert scales[1] is not None
        moved = (scales[1] / scales[0] - 1).abs()
        assert float(moved.max()) < 2.0**-5
    (entry,) = [entry for entry in snapped.history if entry.name == "snap_scales"]
    assert entry.notes[0] == "72 of 72 channels of 4 layers"
    before, after = (
        float(text) for text in entry.notes[1].removeprefix("weight SQNR ").removesuffix(" dB").split(" to ")
    )
    assert before - 0.3 < after <= before + 0.1
    assert entry.notes[2] == "left: linear_1 (gives floats)"
    held_out = images(1, seed=1)[0]
    assert difference([program(held_out)], [snapped(held_out)]).sqnr > 30


def test_the_given_program_stays() -> None:
    program = quantized()
    text, tensors = str(program), {name: tensor.clone() for name, tensor in program.tensors().items()}
    SnapScales()(program)
    assert str(program) == text
    assert all(torch.equal(tensor, program.tensor(name)) for name, tensor in tensors.items())


def test_pairs_of_weights_stay_safe() -> None:
    snapped = SnapScales()(quantized())
    for node in weights(snapped):
        weight, scale = (snapped.constant(argument) for argument in node.args[:2])
        assert weight is not None
        assert scale is not None
        assert torch.equal(pair_safe_scales(weight, scale, 0), scale)


def test_a_bias_that_fills_int32_still_fits() -> None:
    """The scale that its bias has forced up is moved up again, never down."""
    first = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        first.weight.fill_(1e-9)
        nn.init.constant_(first.bias, 3.0)  # type: ignore[arg-type]  # it has one
    data = images(2)
    net = nn.Sequential(first, nn.Conv2d(4, 4, 1))
    program = Quantize(calibration=data, correct_bias=False)(trace(net, (data[0],)))
    snapped = SnapScales()(program)
    for p in (program, snapped):
        (bias,) = [n for n in p.graph.nodes if n.name == "conv2d_bias"]
        values = torch.ops.tersor.fake_quantize_bias(*(p.constant(argument) for argument in bias.args))
        torch.testing.assert_close(values, torch.full((4,), 3.0), rtol=1e-3, atol=0)


def test_a_weight_that_two_layers_share_is_left_and_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(self.layer(x))
            return y

    data = images(2)
    program = Quantize(calibration=data)(trace(Tied(), (data[0],)))
    snapped = SnapScales()(program)
    assert "conv2d (shares its weight), conv2d_1 (shares its weight)" in snapped.history[-1].notes[-1]
    assert str(snapped) == str(program)


@pytest.mark.parametrize("bits", [0, 25])
def test_a_mantissa_of_no_bits_or_too_many_is_refused(bits: int) -> None:
    with pytest.raises(PassError, match="length of a mantissa"):
        SnapScales(bits)


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 9), st.floats(0.5, 0.9999), st.integers(-128, 127))
def test_products_of_that_many_bits_are_exact_up_to_the_clamp(power: int, part: float, zero: int) -> None:
    grid = IntegerGrid("", zero, -128, 127)
    multiplier = torch.tensor([part * 2.0**-power], dtype=torch.float64)
    bits = int(exact_bits(multiplier, grid))
    mantissa = (1 << bits) - 1  # the longest
    scale = 2.0 ** -(power + bits)
    furthest = int(256 / (mantissa * scale)) + 1
    acc = torch.arange(max(1, furthest - 2000), furthest + 1)
    exact = acc.double() * (mantissa * scale)
    inside = (exact <= max(128 + zero, 127 - zero) + 0.5) & (mantissa * scale >= float(multiplier))
    product = acc.float() * torch.tensor(mantissa * scale, dtype=torch.float32)
    assert torch.equal(product.double()[inside], exact[inside])
