"""Forms of a convolution that ONNX Runtime runs faster: the integers are those of the plain form.

Weights are 7 bits wide, so that ONNX Runtime saturates on no machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from tersor.backends.onnx.builder import OnnxOptions
from tersor.backends.onnx.convolution_forms import blocks_of_pixels
from tersor.backends.onnx.emit import emit_model
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.backends.processor import has_amx
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, Scheme
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant

PLAIN = OnnxOptions(contrib=True)
FAST, SHIFTED = replace(PLAIN, fast_convolutions=True), replace(PLAIN, shift_weights=True)


def quantized(model: nn.Module, x: Tensor, scheme: Scheme = INT8) -> Program:
    program = trace(model, (torch.cat([x, x]),), dynamic={"input": {0: "batch"}})
    return Calibrate([x], pair_safe=True)(InsertFakeQuant(scheme)(program))


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def stored(model: onnx.ModelProto) -> dict[str, Tensor]:
    """int8 tensors by name."""
    kept = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8)
    return {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in kept}


# -- blocks of pixels ------------------------------------------------------------------------------------------------


def test_a_seven_by_seven_kernel_becomes_four_by_four() -> None:
    program = quantized(nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.ReLU()), torch.randn(2, 3, 32, 32))
    model = emit_model(program, FAST)
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    assert [list(a.ints) for a in conv.attribute if a.name == "pads"] == [[2, 2, 1, 1]]
    assert {tensor.shape for tensor in stored(model).values() if tensor.dim() == 4} == {(16, 12, 4, 4)}
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(run(model, x), run(emit_model(program, PLAIN), x))


@settings(max_examples=8, deadline=None)
@given(
    channels=st.sampled_from([1, 2, 3]),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.sampled_from([(2, 2), (4, 4), (1, 4), (4, 2)]),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.sampled_from([8, 12]), st.sampled_from([8, 16])),
)
def test_blocks_give_the_same_integers(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> None:
    """Beside a float64 convolution of the same integers, which is exact."""
    x = torch.randint(-100, 100, (2, channels, *size))
    program = quantized(nn.Conv2d(channels, 16, kernel, stride, padding), x.float())
    (node,) = (node for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    found = blocks_of_pixels(program, node)
    assume(found is not None)
    assert found is not None
    weight = torch.randint(-127, 128, (16, channels, *kernel))
    rows, columns = found.block
    shape = (2, channels, size[0] // rows, rows, size[1] // columns, columns)
    blocks = x.reshape(shape).permute(0, 3, 5, 1, 2, 4).reshape(2, -1, *shape[2::2])
    top, left, bottom, right = found.pads
    ours = F.conv2d(F.pad(blocks, (left, right, top, bottom)).double(), found.weight(weight).double())
    assert torch.equal(ours, F.conv2d(x.double(), weight.double(), stride=stride, padding=padding))
    assert torch.equal(run(emit_model(program, FAST), x.float()), run(emit_model(program, PLAIN), x.float()))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(4, 16, 3, 2, 1), 8),
        (nn.Conv2d(3, 16, 3, 1, 1), 8),
        (nn.Conv2d(3, 16, 3, 2, 1), 9),
        (nn.Conv2d(3, 16, 3, 2, 2, dilation=2), 8),
        (nn.Conv2d(3, 15, 3, 2, 1, groups=3), 8),
        (nn.Conv2d(3, 8, 3, 2, 1), 8),
        (nn.Conv2d(3, 16, 16, 16), 32),
    ],
    ids=["four channels", "no stride", "odd size", "dilation", "groups", "few outputs", "patches"],
)
def test_what_gains_nothing_is_left_as_it_is(layer: nn.Conv2d, size: int) -> None:
    program = quantized(layer, torch.randn(2, layer.in_channels, size, size))
    assert emit_model(program, FAST) == emit_model(program, PLAIN)


# -- pads ------------------------------------------------------------------------------------------------------------


class Pads(nn.Module):
    """A pad before a convolution, and its sizes: left, right, top, bottom."""

    def __init__(self, channels: int, sizes: Sequence[int], value: float = 0.0) -> None:
        super().__init__()
        self.conv, self.sizes, self.value = nn.Conv2d(channels, 16, 3, 2), list(sizes), value

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(input, self.sizes, value=self.value))
        return y


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("sizes", [(0, 1, 0, 1), (2, 1), (0, 0, 1, 0)])
def test_a_pad_with_zeros_is_the_padding_of_the_convolution(channels: int, sizes: Sequence[int]) -> None:
    program = quantized(Pads(channels, sizes), torch.randn(2, channels, 12, 12))
    fast, plain = emit_model(program, FAST), emit_model(program, PLAIN)
    assert "Pad" in {node.op_type for node in plain.graph.node}
    assert "Pad" not in {node.op_type for node in fast.graph.node}
    x = torch.randn(3, channels, 12, 12)
    assert torch.equal(run(fast, x), run(plain, x))


@pytest.mark.parametrize(("sizes", "value"), [((1, 1, 1, 1), 0.5), ((-1, 1, 0, 0), 0.0), ((0, 0, 0, 0, 1, 0), 0.0)])
def test_other_pads_stay(sizes: Sequence[int], value: float) -> None:
    channels = 8 - (len(sizes) > 4)
    program = quantized(Pads(8, sizes, value), torch.randn(2, channels, 12, 12))
    assert emit_model(program, FAST) == emit_model(program, PLAIN)


# -- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [INT8, INT4], ids=["int8", "int4"])
def test_weights_one_step_lower_give_the_same_integers(scheme: Scheme) -> None:
    net = nn.Sequential(nn.Conv2d(320, 64, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU())
    program = quantized(net, torch.randn(2, 320, 6, 6), scheme)
    plain, shifted = emit_model(program, PLAIN), emit_model(program, SHIFTED)
    x = torch.randn(3, 320, 6, 6)
    assert torch.equal(run(shifted, x), run(plain, x))
    readers = [node for node in shifted.graph.node if node.op_type == "DequantizeLinear" and len(node.input) > 2]
    zeros = [stored(shifted)[node.input[2]] for node in readers if node.input[2] in stored(shifted)]
    assert len(zeros) == 2
    assert all(bool((zero == -1).all()) for zero in zeros)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(316, 64, 1), nn.Conv2d(320, 48, 1), nn.Conv2d(64, 64, 3), nn.Conv2d(1024, 256, 1, groups=2)]
)
def test_short_sums_keep_their_zero_point(layer: nn.Conv2d) -> None:
    program = quantized(layer, torch.randn(2, layer.in_channels, 4, 4))
    assert emit_model(program, SHIFTED) == emit_model(program, PLAIN)


def test_the_target_asks_for_products_where_the_machine_has_tiles(tmp_path: Path) -> None:
    with_tiles, without = tmp_path / "with", tmp_path / "without"
    with_tiles.write_text("flags : avx2 amx_bf16 amx_tile amx_int8\n")
    without.write_text("flags : avx2 avx512_vnni\n")
    assert has_amx(with_tiles)
    assert not has_amx(without)
    assert not has_amx(tmp_path / "nothing")
    assert OnnxRuntime(amx=True).onnx_options.shift_weights
    assert not OnnxRuntime(amx=False).onnx_options.shift_weights
    assert OnnxRuntime().onnx_options.shift_weights == has_amx()
