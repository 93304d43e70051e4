"""Files whose activations are quantized as they run, and weights with a scale a block: against ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from tersor.frontends.onnx.load import load_onnx
from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.stage import Stage
from tersor.lowering import lower

aten = torch.ops.aten
Array = NDArray[Any]
MICROSOFT = "com.microsoft"


def random(*sizes: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


def saved(
    nodes: list[onnx.NodeProto],
    shape: list[int | str],
    weights: dict[str, Array],
    path: Path,
    *,
    ml: bool = False,
    tensors: Sequence[onnx.TensorProto] = (),
) -> Path:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*tensors, *(numpy_helper.from_array(array, name) for name, array in weights.items())],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    opsets += [helper.make_opsetid("ai.onnx.ml", 3)] if ml else []
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def by_onnxruntime(path: Path, x: Array, *, optimized: Path | None = None) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    found: Array = onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0]
    return found


def count(program: Program, target: Any) -> int:
    return len(program.graph.find_nodes(op="call_function", target=target))


def run(program: Program, x: Array) -> Array:
    found: Array = program(torch.from_numpy(x)).detach().numpy()
    return found


def quantized(folder: Path, *, per_channel: bool = False, kind: QuantType = QuantType.QInt8) -> Path:
    """A convolution and two layers, quantized as ONNX Runtime's tool does it."""
    weights = {"w0": random(4, 3, 3, 3), "b0": random(4), "w1": random(256, 16, seed=1), "b1": random(16, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["y"]),
    ]
    source = saved(nodes, ["n", 3, 8, 8], weights, folder / "float.onnx")
    path = folder / "dynamic.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(source, path, per_channel=per_channel, weight_type=kind)
    return path


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
def test_integers_become_float_operators_on_grids(per_channel: bool, kind: QuantType, tmp_path: Path) -> None:
    path, x = quantized(tmp_path, per_channel=per_channel, kind=kind), random(2, 3, 8, 8, seed=9)
    program = load_onnx(path).verify()
    assert program.stage is Stage.FAKE_QUANT
    assert {target: count(program, target) for target in (aten.conv2d.default, aten.linear.default)} == {
        aten.conv2d.default: 1,
        aten.linear.default: 1,
    }
    assert count(program, FAKE_QUANTIZE) == count(program, FAKE_QUANTIZE_DYNAMIC) == 2
    assert count(program, aten.add.Tensor) == count(program, aten._to_copy.default) == 0
    expected = by_onnxruntime(path, x)
    assert np.abs(run(program, x) - expected).max() <= np.abs(expected).max() / 1000


def test_it_is_integer_again_when_lowered(tmp_path: Path) -> None:
    path, x = quantized(tmp_path), random(2, 3, 8, 8, seed=9)
    artifact = lower(load_onnx(path), "onnxruntime", tmp_path / "lowered")
    assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / "lowered" / "model.onnx").graph.node}
    expected = by_onnxruntime(path, x)
    assert np.abs(artifact.run(torch.from_numpy(x)).numpy() - expected).max() <= np.abs(expected).max() / 1000


def test_a_file_that_onnx_runtime_optimized(tmp_path: Path) -> None:
    path, x = quantized(tmp_path, per_channel=True), random(2, 3, 8, 8, seed=9)
    expected = by_onnxruntime(path, x, optimized=tmp_path / "optimized.onnx")
    written = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert written & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    program = load_onnx(tmp_path / "optimized.onnx").verify()
    assert count(program, FAKE_QUANTIZE_DYNAMIC) == 2
    assert np.abs(run(program, x) - expected).max() <= np.abs(expected).max() / 1000


def test_integers_that_are_read_elsewhere_are_computed_as_the_file_says(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["p"]),
        helper.make_node("Cast", ["p"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["scaled"]),
        helper.make_node("Add", ["scaled", "f"], ["y"]),
    ]
    weight = np.random.default_rng(0).integers(-60, 60, (8, 4)).astype(np.int8)
    path, x = saved(nodes, [3, 8], {"w": weight}, tmp_path / "one.onnx"), random(3, 8)
    program = load_onnx(path).verify()
    assert count(program, FAKE_QUANTIZE_DYNAMIC) == 0
    np.testing.assert_allclose(run(program, x), by_onnxruntime(path, x), rtol=1e-5)


# -- A scale a block ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("columns", [64, 40])
def test_a_product_with_packed_blocks(bits: int, zero_points: bool, columns: int, tmp_path: Path) -> None:
    rows, block, rng = 6, 16, np.random.default_rng(0)
    blocks = -(-columns // block)
    weights: dict[str, Array] = {
        "w": rng.integers(0, 256, (rows, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.1, rows * blocks).astype(np.float32),
        "b": random(rows),
    }
    if zero_points:
        weights["z"] = rng.integers(0, 256, rows * -(-blocks * bits // 8)).astype(np.uint8)
    inputs = ["x", "w", "s", "z" if zero_points else "", "", "b"]
    attributes: dict[str, Any] = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain=MICROSOFT, **attributes)
    path, x = saved([node], ["n", columns], weights, tmp_path / "one.onnx"), random(5, columns)
    program = load_onnx(path).verify()
    assert [count(program, target) for target in (FAKE_QUANTIZE_BLOCKS, aten.linear.default)] == [1, 1]
    np.testing.assert_allclose(run(program, x), by_onnxruntime(path, x), rtol=1e-3, atol=1e-3)


def test_stored_blocks_are_turned_with_their_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.integers(-8, 8, (8, 6)).astype(np.int8),
        "s": rng.uniform(0.01, 0.1, (2, 6)).astype(np.float32),
        "z": rng.integers(-3, 3, (2, 6)).astype(np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"], axis=0, block_size=4),
        helper.make_node("MatMul", ["x", "dw"], ["y"]),
    ]
    path, x = saved(nodes, ["n", 8], weights, tmp_path / "one.onnx"), random(3, 8)
    program = load_onnx(path).verify()
    (node,) = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BLOCKS)
    assert node.args[3:5] == (1, 4)
    assert count(program, aten.linear.default) == 1
    np.testing.assert_allclose(run(program, x), by_onnxruntime(path, x), rtol=1e-5, atol=1e-6)


def test_packed_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights: dict[str, Array] = {"w": np.zeros((6, 2, 8), np.uint8), "s": np.ones(11, np.float32)}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain=MICROSOFT, K=32, N=6, bits=4, block_size=16)
    with pytest.raises(Exception, match="a scale for each block"):
        load_onnx(saved([node], ["n", 32], weights, tmp_path / "one.onnx"))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("bits", "whole"), [(4, False), (8, False), (4, True)])
def test_rows_of_packed_blocks(bits: int, whole: bool, zero_points: bool, tmp_path: Path) -> None:
    """A table of 6 rows in blocks of 16, as bytes or as 4-bit integers; an odd number of blocks leaves half a byte."""
    rng, blocks, packed = np.random.default_rng(0), 3, bits == 4 and not whole
    kind, most = (TensorProto.UINT4, 16) if whole else (TensorProto.UINT8, 256)
    steps = rng.integers(0, most, (6, 8 * blocks if packed else 16 * blocks))
    zeros = rng.integers(0, most, (6, 2 if packed else blocks))
    tensors = [helper.make_tensor("w", kind, steps.shape, steps.flatten().tolist())]
    tensors += [helper.make_tensor("z", kind, zeros.shape, zeros.flatten().tolist())] if zero_points else []
    tensors.append(numpy_helper.from_array(rng.uniform(0.01, 0.1, (6, blocks)).astype(np.float32), "s"))
    attributes: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": 16, "bits": bits}
    inputs = ["w", "places", "s", *(["z"] if zero_points else [])]
    nodes = [
        helper.make_node("Cast", ["x"], ["places"], to=TensorProto.INT64),
        helper.make_node("GatherBlockQuantized", inputs, ["y"], domain=MICROSOFT, **attributes),
    ]
    path, x = saved(nodes, ["n", 2], {}, tmp_path / "one.onnx", tensors=tensors), np.array([[5, 0], [1, 5]], np.float32)
    program = load_onnx(path).verify()
    assert [count(program, target) for target in (FAKE_QUANTIZE_BLOCKS, aten.embedding.default)] == [1, 1]
    np.testing.assert_allclose(run(program, x), by_onnxruntime(path, x), rtol=1e-6, atol=1e-6)


# -- What else quantizers and other tools write ------------------------------------------------------------------------


def test_a_number_to_pad_with_may_be_stored_as_an_integer(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["v"]),
        helper.make_node("Pad", ["x", "pads", "v"], ["y"]),
    ]
    weights: dict[str, Array] = {"q": np.array(7, np.uint8), "s": np.array(0.5, np.float32), "z": np.array(3, np.uint8)}
    path = saved(nodes, ["n", 2], {**weights, "pads": np.array([0, 1, 0, 0])}, tmp_path / "one.onnx")
    assert load_onnx(path)(torch.zeros(1, 2)).tolist() == [[2.0, 0.0, 0.0]]


def test_a_convolution_takes_what_is_added_to_its_channels(tmp_path: Path) -> None:
    weights = {"w": random(4, 3, 1, 1), "b": random(1, 4, 1, 1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Add", ["b", "c"], ["y"])]
    path, x = saved(nodes, ["n", 3, 2, 2], weights, tmp_path / "one.onnx"), random(2, 3, 2, 2)
    program = load_onnx(path)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [aten.conv2d.default]
    np.testing.assert_allclose(run(program, x), by_onnxruntime(path, x), rtol=1e-5, atol=1e-6)


ML: dict[str, dict[str, Any]] = {
    "Scaler": {"offset": [1.0, 2.0, 3.0], "scale": [2.0, 0.5, 1.0]},
    "Imputer": {"imputed_value_floats": [5.0, 6.0, 7.0], "replaced_value_float": 1.0},
    "Normalizer": {"norm": "L1"},
    "LinearRegressor": {"coefficients": [float(i) for i in range(6)], "intercepts": [1.0, 2.0], "targets": 2},
    "Binarizer": {"threshold": 0.5},
    "FeatureVectorizer": {"inputdimensions": [3]},
}


@pytest.mark.parametrize("operator", ML)
def test_an_operator_of_machine_learning(operator: str, tmp_path: Path) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain="ai.onnx.ml", **ML[operator])
    path, x = saved([node], ["n", 3], {}, tmp_path / "one.onnx", ml=True), random(4, 3)
    x[1] = 1.0
    np.testing.assert_allclose(run(load_onnx(path).verify(), x), by_onnxruntime(path, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", ["RandomUniform", "RandomNormalLike", "Bernoulli", "Multinomial"])
def test_random_numbers_are_pytorchs(operator: str, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "RandomUniform": {"shape": [400, 3], "low": 2.0, "high": 4.0},
        "RandomNormalLike": {"mean": 3.0, "scale": 0.5},
        "Multinomial": {"sample_size": 3, "dtype": TensorProto.INT64},
    }
    inputs = [] if operator == "RandomUniform" else ["x"]
    drawn = helper.make_node(operator, inputs, ["d"], **options.get(operator, {}))
    cast = helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT)
    program = load_onnx(saved([drawn, cast], [400, 3], {}, tmp_path / "one.onnx")).verify()
    torch.manual_seed(0)
    first, second = (program(torch.full((400, 3), 0.25)) for _ in range(2))
    assert not torch.equal(first, second)
    mean = {"RandomUniform": 3.0, "RandomNormalLike": 3.0, "Bernoulli": 0.25, "Multinomial": 1.0}[operator]
    assert abs(float(first.mean()) - mean) < 0.1


@pytest.mark.parametrize(
    ("operator", "domain", "reason"),
    [
        ("NonMaxSuppression", "", "cut the model before it"),
        ("Conv", "com.microsoft.nchwc", "ORT_ENABLE_EXTENDED"),
        ("TreeEnsembleClassifier", "ai.onnx.ml", "not made of tensor operators"),
    ],
)
def test_operators_that_are_not_taken_say_why(operator: str, domain: str, reason: str, tmp_path: Path) -> None:
    node = helper.make_node(operator, ["x", "x"], ["y"], domain=domain)
    with pytest.raises(Exception, match=reason):
        load_onnx(saved([node], ["n", 3], {}, tmp_path / "one.onnx"))
