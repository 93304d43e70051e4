"""Models that ONNX Runtime's own tools quantized: the imported program gives its numbers, and is integer again."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from tersor.frontends.onnx.load import load_onnx
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.lowering import lower

aten = torch.ops.aten


def random(*sizes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


def float_model() -> onnx.ModelProto:
    """Convolutions with a residual, pooled and classified: each operator of which there is an integer form."""
    weights = {
        "w0": random(8, 3, 3, 3),
        "b0": random(8, seed=1),
        "w1": random(8, 8, 1, 1, seed=2),
        "w2": random(8, 5, seed=3),
        "b2": random(5, seed=4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("LeakyRelu", ["c0"], ["r0"], alpha=0.1, name="bend"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="second"),
        helper.make_node("Add", ["c1", "r0"], ["a"], name="residual"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], name="classify"),
    ]
    sizes: list[str | int] = ["n", 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self) -> None:
        self.left = iter([{"x": random(4, 3, 8, 8, seed=seed)} for seed in range(10, 13)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def quantized(folder: Path, kind: QuantFormat | None, per_channel: bool, *, narrow: bool = False) -> Path:
    """The model quantized to a format; dynamically where there is none. `narrow`: weights of 7 bits."""
    source, path = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(float_model(), source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is None:
            quantize_dynamic(source, path, per_channel=per_channel, weight_type=QuantType.QUInt8)
        else:
            quantize_static(source, path, Batches(), quant_format=kind, per_channel=per_channel, reduce_range=narrow)
    return path


def by_onnxruntime(path: Path, x: np.ndarray, *, optimized: bool = False) -> np.ndarray:
    """What ONNX Runtime gives: node by node as the file says, or with the integer kernels that it fuses them to.

    The fused kernels may differ from the file by many steps: see the test of saturation.
    """
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    found: np.ndarray = onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0]
    return found


def step_of_output(program: Program) -> float:
    """The scale of the last fake_quantize."""
    last = [node for node in program.graph.nodes if node.target is FAKE_QUANTIZE][-1]
    return float(program.tensor(str(last.args[1].target)))


FORMATS = [QuantFormat.QDQ, QuantFormat.QOperator]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_numbers_are_within_a_step(kind: QuantFormat, per_channel: bool, tmp_path: Path) -> None:
    path, x = quantized(tmp_path, kind, per_channel), random(4, 3, 8, 8, seed=20)
    program = load_onnx(path)
    off = np.abs(program(torch.from_numpy(x)).detach().numpy() - by_onnxruntime(path, x))
    assert off.max() <= 1.01 * step_of_output(program)


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_integer_again_when_lowered(kind: QuantFormat, tmp_path: Path) -> None:
    """Weights of 7 bits, with which no kernel saturates: the lowered file gives the same steps as the file."""
    path, x = quantized(tmp_path, kind, True, narrow=True), random(4, 3, 8, 8, seed=20)
    program = load_onnx(path)
    artifact = lower(program, "onnxruntime", tmp_path / "lowered")
    assert artifact.report.integer_share == 1.0
    for optimized in (False, True):
        off = np.abs(artifact.run(torch.from_numpy(x)).numpy() - by_onnxruntime(path, x, optimized=optimized))
        assert off.max() <= 1.01 * step_of_output(program)


def product_of_full_range(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A product of uint8 and int8 that use their full ranges, on scales that show every unit of the sums."""
    rng = np.random.default_rng(0)
    x = rng.integers(128, 256, (6, 64)).astype(np.uint8)
    w = rng.choice(np.array([-127, 127, 100, -90], np.int8), (64, 8))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xr"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wr"]),
        helper.make_node("Gemm", ["xr", "wr"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "sy", "zy"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    one, coarse = np.float32(1), np.float32(4096)
    weights = {"sx": one, "zx": np.uint8(0), "w": w, "sw": one, "zw": np.int8(0), "sy": coarse, "zy": np.uint8(128)}
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [6, 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [6, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    path = folder / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, x, w


def test_what_a_fused_kernel_is_off_by_is_saturation(tmp_path: Path) -> None:
    """Without VNNI pairs of products are summed in int16, which saturates: ONNX Runtime's kernels, not the import.

    Both sums are computed here in exact integers. The file as ONNX Runtime fuses it gives one of them, depending on the
    processor, and so does what the program is lowered to; the program itself gives the exact one.
    """
    path, x, w = product_of_full_range(tmp_path)
    pairs = x.astype(np.int64).reshape(6, 32, 2, 1) * w.astype(np.int64).reshape(1, 32, 2, 8)
    exact, saturated = pairs.sum((1, 2)), np.clip(pairs.sum(2), -(2**15), 2**15 - 1).sum(1)
    steps = {name: np.clip(np.round(sums / 4096), -128, 127) for name, sums in (("exact", exact), ("int16", saturated))}
    assert np.abs(steps["exact"] - steps["int16"]).max() > 1
    program = load_onnx(path)
    given = torch.from_numpy(x.astype(np.float32))
    np.testing.assert_array_equal(program(given).detach().numpy() / 4096, steps["exact"])
    lowered = lower(program, "onnxruntime", tmp_path / "lowered").run(given).numpy() / 4096
    fused = by_onnxruntime(path, x.astype(np.float32), optimized=True) / 4096
    np.testing.assert_array_equal(lowered, fused)
    assert any(np.array_equal(fused, expected) for expected in steps.values())


def test_both_formats_are_one_program_in_kind(tmp_path: Path) -> None:
    counts = []
    for kind in FORMATS:
        folder = tmp_path / str(kind)
        folder.mkdir()
        nodes = [node.target for node in load_onnx(quantized(folder, kind, True)).graph.nodes]
        counts.append([nodes.count(target) for target in (aten.conv2d.default, aten.linear.default)])
    assert counts == [[2, 1], [2, 1]]


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantization_gives_its_numbers(per_channel: bool, tmp_path: Path) -> None:
    path, x = quantized(tmp_path, None, per_channel), random(4, 3, 8, 8, seed=20)
    expected = by_onnxruntime(path, x)
    found = load_onnx(path)(torch.from_numpy(x)).detach().numpy()
    assert np.abs(found - expected).max() <= np.abs(expected).max() / 100
