"""Fake-quantized programs as QDQ: the numbers that ONNX Runtime gives, against the program and the integer definition.

On CPUs without VNNI, ONNX Runtime's u8 x s8 kernels saturate where two neighbouring products sum past int16. The
weights here are 7 bits wide, for which they cannot, so that "equal" means equal on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tersor.backends.onnx.builder import OnnxOptions
from tersor.backends.onnx.emit import emit_model, unsupported
from tersor.frontends.torch_export import trace
from tersor.ir.errors import LoweringError
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, quantize_bias, quantize_to_grid
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, SCHEMES
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.stage import Stage
from tersor.ir.structure import flatten
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant

aten = torch.ops.aten
FLOAT_KERNELS = {"Gemm", "MatMul", "FusedMatMul", "FusedGemm"}


class Build:
    """A small fake-quantized program, operator by operator."""

    def __init__(self, *inputs: Tensor) -> None:
        self.graph, self.tensors, self.inputs = fx.Graph(), dict[str, Tensor](), inputs
        self.nodes = [self.graph.placeholder(f"x{index}") for index in range(len(inputs))]

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def read(self, name: str, tensor: Tensor) -> fx.Node:
        self.tensors[name] = tensor
        return self.graph.get_attr(name)

    def grid(
        self,
        x: fx.Node,
        scale: float | Tensor,
        zero: int = 0,
        low: int = -128,
        high: int = 127,
        axis: int | None = None,
    ) -> fx.Node:
        count = len(self.tensors)
        factors = torch.as_tensor(scale, dtype=torch.float32)
        zeros = torch.full(factors.shape, zero, dtype=torch.int32)
        parameters = self.read(f"scale{count}", factors), self.read(f"zero{count}", zeros)
        return self.call(FAKE_QUANTIZE, x, *parameters, axis, low, high)

    def program(self, *outputs: fx.Node) -> Program:
        self.graph.output(outputs)
        specs = tuple(TensorSpec(f"x{i}", x.dtype, tuple(x.shape)) for i, x in enumerate(self.inputs))
        structures = flatten(self.inputs)[1], flatten({})[1], flatten(tuple(torch.zeros(1) for _ in outputs))[1]
        return Program.build(self.graph, self.tensors, Signature(specs, *structures), stage=Stage.FAKE_QUANT)


def session(model: onnx.ModelProto, optimized: str = "") -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> list[Tensor]:
    found = session(model)
    feed = {given.name: x.numpy() for given, x in zip(found.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in found.run(None, feed)]


def kernels(model: onnx.ModelProto, folder: Any) -> list[str]:
    """What ONNX Runtime makes of a model."""
    path = str(folder / "optimized.onnx")
    session(model, path)
    return [node.op_type for node in onnx.load(path).graph.node]


def both(build: Build, *outputs: fx.Node, options: OnnxOptions | None = None) -> tuple[list[Tensor], list[Tensor]]:
    program = build.program(*outputs)
    return list(program.run(build.inputs)), run(emit_model(program, options), build.inputs)


# -- the grid --------------------------------------------------------------------------------------------------------

scales = st.floats(2**-10, 2**3).map(lambda value: float(numpy.float32(value)))


@settings(max_examples=30, deadline=None)
@given(scale=scales, zero=st.integers(-128, 127), unsigned=st.booleans())
def test_values_land_on_the_grid_that_the_program_says_ties_included(scale: float, zero: int, unsigned: bool) -> None:
    ties = (torch.arange(-300, 300) + 0.5) * scale
    near = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1), torch.randn(200) * scale])
    build = Build(near)
    (ours,), (theirs,) = both(build, build.grid(build.nodes[0], scale, zero), options=OnnxOptions(unsigned=unsigned))
    assert torch.equal(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(scale=scales, grid=st.sampled_from([(-127, 127), (-64, 63), (-8, 7), (-7, 7), (0, 127)]), data=st.data())
def test_a_narrow_grid_clamps(scale: float, grid: tuple[int, int], data: st.DataObject) -> None:
    zero = data.draw(st.integers(*grid))
    build = Build(torch.linspace(-300, 300, 999) * scale)
    (ours,), (theirs,) = both(build, build.grid(build.nodes[0], scale, zero, *grid))
    assert torch.equal(ours, theirs)


CLAMPS: dict[str, tuple[Any, ...]] = {
    "relu": (aten.relu.default,),
    "relu6": (aten.relu6.default,),
    "hardtanh": (aten.hardtanh.default, -0.3, 0.7),
    "clamp below": (aten.clamp.default, 0.3),
    "clamp above": (aten.clamp.default, None, 0.3),
}


@pytest.mark.parametrize("name", CLAMPS)
@settings(max_examples=15, deadline=None)
@given(scale=scales, zero=st.integers(-128, 127))
def test_a_clamp_moves_behind_the_grid_and_changes_nothing(name: str, scale: float, zero: int) -> None:
    target, *bounds = CLAMPS[name]
    build = Build(torch.cat([torch.linspace(-300, 300, 999) * scale, torch.linspace(-8, 8, 999)]))
    clamped = build.call(target, build.nodes[0], *bounds)
    (ours,), (theirs,) = both(build, build.grid(build.call(aten.relu.default, clamped), scale, zero))
    assert torch.equal(ours, theirs)


def test_a_clamp_that_the_grid_does_anyway_leaves_nothing() -> None:
    build = Build(torch.randn(50))
    clamped = build.call(aten.relu.default, build.nodes[0])
    model = emit_model(build.program(build.grid(clamped, 0.1, -128)))
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "DequantizeLinear"]


def test_a_clamp_that_others_read_stays() -> None:
    build = Build(torch.randn(50))
    clamped = build.call(aten.relu.default, build.nodes[0])
    ours, theirs = both(build, clamped, build.grid(clamped, 0.1, -128))
    assert all(map(torch.equal, ours, theirs))


# -- constants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "kind"), [(-127, "INT8"), (-7, "INT4")])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("widen", [True, False])
def test_weights_are_stored_as_integers(low: int, kind: str, axis: int | None, widen: bool) -> None:
    build, weight = Build(torch.randn(5, 3)), torch.randn(5, 3)
    scale = torch.tensor(0.1) if axis is None else torch.rand(weight.shape[axis]) + 0.05
    quantized = build.grid(build.read("layer.weight", weight), scale, 0, low, -low, axis)
    program = build.program(build.call(aten.mul.Tensor, build.nodes[0], quantized))
    model = emit_model(program, OnnxOptions(widen=widen))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    steps = onnx.numpy_helper.to_array(stored["layer.weight"]).astype(numpy.int8)
    expected = quantize_to_grid(weight, scale, torch.zeros(scale.shape), axis, low, -low)
    assert onnx.TensorProto.DataType.Name(stored["layer.weight"].data_type) == kind
    assert numpy.array_equal(steps, expected.numpy())
    torch.testing.assert_close(run(model, build.inputs)[0], program.run(build.inputs)[0])


def test_a_bias_is_stored_as_int32_on_the_grid_of_its_accumulator() -> None:
    build = Build(torch.zeros(1, 4))
    bias, sx, sw = torch.randn(3), torch.tensor(0.02), torch.rand(3) * 0.01 + 1e-3
    reads = [build.read(name, tensor) for name, tensor in (("bias", bias), ("sx", sx), ("sw", sw))]
    program = build.program(build.call(FAKE_QUANTIZE_BIAS, *reads))
    model = emit_model(program)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert stored["bias"].dtype == numpy.int32
    assert numpy.array_equal(stored["bias"], quantize_bias(bias, sx, sw).numpy())
    assert numpy.array_equal(stored["bias_scale"], (sx * sw).numpy())
    torch.testing.assert_close(run(model, build.inputs)[0], program.run(build.inputs)[0])


# -- integer kernels against the definition --------------------------------------------------------------------------


def requantized(acc: Tensor, multiplier: Tensor, zero: int, scale: float) -> Tensor:
    """clamp(round_half_even(float32(acc) * m) + zy), as a number."""
    steps = torch.clamp(torch.round(acc.float() * multiplier) + zero, -128, 127)
    return (steps - zero) * torch.tensor(scale)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.integers(3, 9),
    channels=st.sampled_from([(3, 16), (4, 8), (16, 16), (5, 7)]),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    zeros=st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
    clamp=st.booleans(),
)
def test_a_convolution_computes_the_definition(
    seed: int, size: int, channels: tuple[int, int], kernel: int, stride: int, zeros: tuple[int, int], clamp: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = channels
    sx, sy = torch.rand(2, generator=generator) * 0.05 + 0.01
    sw = torch.rand(outputs, generator=generator) * 0.01 + 0.001
    steps = torch.randint(-63, 64, (outputs, inputs, kernel, kernel), generator=generator)
    weight, bias = steps * sw[:, None, None, None], torch.randn(outputs, generator=generator)
    build = Build(torch.randn(2, inputs, size, size, generator=generator) * 3)
    x = build.grid(build.nodes[0], sx, zeros[0])
    w = build.grid(build.read("weight", weight), sw, 0, -127, 127, 0)
    b = build.call(FAKE_QUANTIZE_BIAS, build.read("bias", bias), x.args[1], w.args[1])
    y = build.call(aten.conv2d.default, x, w, b, [stride, stride], [kernel // 2, kernel // 2])
    y = build.grid(build.call(aten.relu.default, y) if clamp else y, sy, zeros[1])
    (ours,), (theirs,) = both(build, y)
    codes = quantize_to_grid(build.inputs[0], sx, torch.tensor(zeros[0]), None, -128, 127) - zeros[0]
    acc = F.conv2d(codes.double(), steps.double(), quantize_bias(bias, sx, sw).double(), stride, kernel // 2)
    multiplier = (sx * sw / sy)[:, None, None]
    expected = requantized(acc, multiplier, zeros[1], float(sy))
    expected = expected.clamp(min=0) if clamp else expected
    assert torch.equal(theirs, expected)
    assert (ours - theirs).abs().max() <= sy * 1.001


@pytest.mark.parametrize("shape", [(6, 32), (2, 3, 32)])
def test_quantized_weights_alone_leave_the_arithmetic_float(shape: tuple[int, ...]) -> None:
    """ONNX Runtime would quantize the activations of a MatMul by itself, which is not what the program says."""
    build = Build(torch.randn(shape))
    weight = build.grid(build.read("weight", torch.randn(8, 32)), torch.rand(8) * 0.1 + 0.1, 0, -127, 127, 0)
    (ours,), (theirs,) = both(build, build.call(aten.linear.default, build.nodes[0], weight, None))
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 32), (2, 3, 32), (2, 2, 3, 32)])
@pytest.mark.parametrize("grid_after", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_linear_computes_the_definition(
    shape: tuple[int, ...], grid_after: bool, with_bias: bool, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    sx, sy, sw = torch.tensor(0.03), 0.04, torch.rand(8) * 0.01 + 0.001
    steps, bias = torch.randint(-63, 64, (8, 32)), torch.randn(8)
    build = Build(torch.randn(shape))
    x = build.grid(build.nodes[0], sx, 5)
    w = build.grid(build.read("weight", steps * sw[:, None]), sw, 0, -127, 127, 0)
    b = build.call(FAKE_QUANTIZE_BIAS, build.read("bias", bias), x.args[1], w.args[1]) if with_bias else None
    y = build.call(aten.linear.default, x, w, b)
    program = build.program(build.grid(y, sy, -3) if grid_after else y)
    model = emit_model(program)
    codes = quantize_to_grid(build.inputs[0], sx, torch.tensor(5), None, -128, 127) - 5
    offset = quantize_bias(bias, sx, sw).double() if with_bias else None
    acc = F.linear(codes.double(), steps.double(), offset)
    (theirs,) = run(model, build.inputs)
    if grid_after:
        assert torch.equal(theirs, requantized(acc, sx * sw / sy, -3, sy))
    else:
        torch.testing.assert_close(theirs, acc.float() * (sx * sw), rtol=1e-6, atol=1e-6)
    made = kernels(model, tmp_path)
    assert "QGemm" in made
    assert not FLOAT_KERNELS & set(made)


def test_every_sum_of_two_values_is_the_definition() -> None:
    """All 65,536 pairs."""
    every = torch.arange(-128, 128)
    left, right = (t.reshape(256, 256).float() for t in (every.repeat_interleave(256), every.repeat(256)))
    sa, sb, sc = (torch.tensor(value) for value in (0.021, 0.034, 0.045))
    build = Build((left - 7) * sa, (right + 9) * sb)
    a, b = build.grid(build.nodes[0], sa, 7), build.grid(build.nodes[1], sb, -9)
    (ours,), (theirs,) = both(build, build.grid(build.call(aten.add.Tensor, a, b), sc, -11))
    steps = torch.clamp(torch.round(((left - 7) * sa + (right + 9) * sb) / sc) - 11, -128, 127)
    assert torch.equal(theirs, (steps + 11) * sc)
    assert torch.equal(ours, theirs)


# -- moves -----------------------------------------------------------------------------------------------------------


class Moves(nn.Module):
    """Every kind of move between integer kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.wide, self.token, self.head = nn.Conv2d(16, 32, 1), nn.Linear(16, 16), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        x = self.body(F.pad(x, (1, 0, 0, 1)))[:, :, :-1, 1:]
        x = self.body(F.interpolate(x, scale_factor=2))
        first, second = torch.split(self.wide(x), 16, 1)
        x = F.relu6(self.body(first) + self.body(second))
        x = torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1)[:, 8:24]
        tokens = self.token(x.flatten(2).transpose(1, 2))
        x = tokens.permute(0, 2, 1).reshape(tokens.shape[0], 16, 8, 8)
        x = torch.stack([self.body(x), self.body(x)], 1).flatten(1, 2)
        return cast(Tensor, self.head(x.mean((2, 3)))).unsqueeze(1)


def calibrated(model: nn.Module, x: Tensor, scheme: Any = INT8) -> Program:
    program = trace(model, (x,), dynamic={"x": {0: "batch"}})
    return Calibrate([x], pair_safe=True)(InsertFakeQuant(scheme)(program))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_between_integer_kernels_is_float(scheme: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    program = calibrated(Moves(), torch.randn(2, 3, 8, 8), SCHEMES[scheme])
    model = emit_model(program)
    x = torch.randn(3, 3, 8, 8)
    (ours,), (theirs,) = program.run([x]), run(model, [x])
    # A tie on the way may fall the other way in float, by one step of the last grids.
    assert (ours - theirs).abs().max() <= 0.02 * ours.abs().max()
    made = kernels(model, tmp_path)
    assert "DequantizeLinear" not in made
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QGemm", "QLinearGlobalAveragePool"} <= set(made)
    assert made.count("QuantizeLinear") == 1


def test_signed_activations_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    program = calibrated(Moves(), torch.randn(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    unsigned, signed = (run(emit_model(program, OnnxOptions(unsigned=u)), [x])[0] for u in (True, False))
    torch.testing.assert_close(unsigned, signed, rtol=0.02, atol=0.01)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_uncalibrated_program_is_refused() -> None:
    program = InsertFakeQuant()(trace(nn.Conv2d(3, 4, 3), (torch.randn(1, 3, 8, 8),)))
    assert {refused.operator for refused in unsupported(program)} == {"tersor.observe"}
    with pytest.raises(LoweringError, match="run Calibrate first"):
        emit_model(program)


def test_a_grid_that_is_too_wide_is_refused() -> None:
    build = Build(torch.randn(4))
    program = build.program(build.grid(build.nodes[0], 0.1, 0, -512, 511))
    assert "does not fit 8 bits" in unsupported(program)[0].reason
