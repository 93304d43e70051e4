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


def quantized(folder: Path, kind: QuantFormat | None, per_channel: bool) -> Path:
    """The model quantized to a format; dynamically where there is none."""
    source, path = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(float_model(), source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is None:
            quantize_dynamic(source, path, per_channel=per_channel, weight_type=QuantType.QUInt8)
        else:
            quantize_static(source, path, Batches(), quant_format=kind, per_channel=per_channel)
    return path


def by_onnxruntime(path: Path, x: np.ndarray, *, optimized: bool = False) -> np.ndarray:
    """What ONNX Runtime gives: node by node as the file says, or with the integer kernels that it fuses them to.

    The fused kernels may differ from the file by many steps, depending on the processor.
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


FLATTENS_INTEGERS = pytest.mark.xfail(strict=True, reason="Flatten of integers is imported as arithmetic on them")


@pytest.mark.parametrize("kind", [QuantFormat.QDQ, pytest.param(QuantFormat.QOperator, marks=FLATTENS_INTEGERS)])
def test_it_is_integer_again_when_lowered(kind: QuantFormat, tmp_path: Path) -> None:
    path, x = quantized(tmp_path, kind, True), random(4, 3, 8, 8, seed=20)
    program = load_onnx(path)
    artifact = lower(program, "onnxruntime", tmp_path / "lowered")
    assert artifact.report.integer_share == 1.0
    off = np.abs(artifact.run(torch.from_numpy(x)).numpy() - by_onnxruntime(path, x, optimized=True))
    assert off.max() <= 1.01 * step_of_output(program)


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
