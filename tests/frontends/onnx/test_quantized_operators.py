"""Operators of quantized files, one at a time on random integers, against ONNX Runtime's own kernels.

The models take floats, put them on a grid, run one operator on integers and give the result as floats. ONNX Runtime
runs the file node by node. Where its kernels round as the definition does, the outputs differ by nothing but the order
of float operations; each case states by how many steps of its result a kernel may differ, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tersor.frontends.onnx.load import load_onnx
from tersor.ir.errors import TraceError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program

aten = torch.ops.aten
Array = NDArray[Any]
MICROSOFT = "com.microsoft"
SCALE, ZERO = np.float32(0.0517), np.uint8(120)
OTHER, OTHER_ZERO = np.float32(0.0311), np.uint8(140)
RESULT, RESULT_ZERO = np.float32(0.0793), np.uint8(110)
"""Scales of which no sums are multiples of others, so that no result lies on a tie between two steps."""


def by_onnxruntime(path: Path, inputs: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    found: list[Array] = onnxruntime.InferenceSession(path, options).run(None, inputs)
    return found


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def signed(*sizes: int, seed: int = 1) -> Array:
    """Weights of 7 bits, whose products do not saturate on any processor."""
    return rng(seed).integers(-64, 64, sizes).astype(np.int8)


def model(nodes: Sequence[onnx.NodeProto], inputs: dict[str, Array], weights: dict[str, Any], outputs: int = 1) -> Any:
    def info(name: str, array: Array) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))

    names = ["y", "y1", "y2"][:outputs]
    graph = helper.make_graph(
        list(nodes),
        "one",
        [info(name, array) for name, array in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in names],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def both(folder: Path, proto: onnx.ModelProto, inputs: dict[str, Array]) -> tuple[Program, list[Array], list[Array]]:
    """The program, its outputs and ONNX Runtime's."""
    path = folder / "one.onnx"
    onnx.save(proto, path)
    program = load_onnx(path).verify()
    found = [tensor.detach().numpy() for tensor in program.run([torch.from_numpy(a) for a in inputs.values()])]
    return program, found, by_onnxruntime(path, inputs)


# -- Between grids -----------------------------------------------------------------------------------------------------

X, B, Y = ["xq", "sx", "zx"], ["bq", "sb", "zb"], ["sy", "zy"]
SHARE, FINE_SHARE = (np.float32(1 / 256), np.uint8(0)), (np.float32(1 / 2048), np.uint8(0))
IMAGE, MATRIX = (2, 4, 6, 6), (5, 8)


@dataclass(frozen=True)
class Case:
    """One operator of com.microsoft or ONNX: its inputs, of which `xq` and `bq` are floats put on grids.

    steps: by how many of the result's steps ONNX Runtime's kernel may differ.
    """

    operator: str
    inputs: list[str]
    sizes: tuple[int, ...] = IMAGE
    domain: str = MICROSOFT
    weights: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    target: Any = None
    result: tuple[np.float32, np.uint8] = (RESULT, RESULT_ZERO)


CASES = {
    "add": Case("QLinearAdd", X + B + Y, target=aten.add.Tensor),
    "mul": Case("QLinearMul", X + B + Y, target=aten.mul.Tensor),
    "concat": Case("QLinearConcat", Y + X + B, attributes={"axis": 1}, target=aten.cat.default),
    "sigmoid": Case("QLinearSigmoid", X + Y, target=aten.sigmoid.default),
    "leaky_relu": Case("QLinearLeakyRelu", X + Y, attributes={"alpha": 0.2}, target=aten.leaky_relu.default),
    "softmax": Case(
        "QLinearSoftmax", X + Y, attributes={"axis": 1, "opset": 13}, target=aten.softmax.int, result=SHARE
    ),
    "softmax_of_matrix": Case(
        "QLinearSoftmax", X + Y, attributes={"axis": 1, "opset": 11}, target=aten.softmax.int, result=FINE_SHARE
    ),
    "global_average_pool": Case("QLinearGlobalAveragePool", X + Y, target=aten.adaptive_avg_pool2d.default),
    "average_pool": Case(
        "QLinearAveragePool", X + Y, attributes={"kernel_shape": [2, 2], "strides": [2, 2]},
        target=aten.avg_pool2d.default,
    ),
    "average_pool_padded": Case(
        "QLinearAveragePool", X + Y, attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, steps=1,
        target=aten.avg_pool2d.default,
    ),
    "convolution": Case(
        "QLinearConv", [*X, "w", "sw", "zw", *Y, "bias"], domain="", attributes={"pads": [1, 1, 1, 1]},
        weights={
            "w": signed(3, 4, 3, 3), "sw": np.array([0.01, 0.02, 0.015], np.float32), "zw": np.zeros(3, np.int8),
            "bias": np.array([100, -200, 300], np.int32),
        },
        target=aten.conv2d.default,
    ),
    "matmul": Case(
        "QLinearMatMul", [*X, "w", "sw", "zw", *Y], MATRIX, "",
        {"w": signed(8, 6), "sw": np.float32(0.02), "zw": np.int8(0)}, target=aten.linear.default,
    ),
    "gemm": Case(
        "QGemm", [*X, "w", "sw", "zw", "bias", *Y], MATRIX, attributes={"transB": 1},
        weights={
            "w": signed(6, 8), "sw": rng(3).uniform(0.01, 0.03, 6).astype(np.float32), "zw": np.zeros(6, np.int8),
            "bias": np.arange(-300, 300, 100, dtype=np.int32),
        },
        target=aten.linear.default,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator_gives_the_steps_of_its_kernel(name: str, tmp_path: Path) -> None:
    """`steps` is 1 for padded averages alone: that kernel sums in another order, and some sums are near a tie."""
    case = CASES[name]
    second = "bq" in case.inputs
    inputs = {"x": rng().uniform(-6, 6, case.sizes).astype(np.float32)}
    inputs |= {"b": rng(5).uniform(-4, 3, case.sizes).astype(np.float32)} if second else {}
    scales = {"sx": SCALE, "zx": ZERO, "sb": OTHER, "zb": OTHER_ZERO, "sy": case.result[0], "zy": case.result[1]}
    used = {key: value for key, value in scales.items() if key in case.inputs}
    nodes = [helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"])]
    nodes += [helper.make_node("QuantizeLinear", ["b", "sb", "zb"], ["bq"])] if second else []
    nodes.append(helper.make_node(case.operator, case.inputs, ["yq"], domain=case.domain, **case.attributes))
    nodes.append(helper.make_node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]))
    program, found, expected = both(tmp_path, model(nodes, inputs, {**used, **case.weights}), inputs)
    steps = np.abs(np.round((found[0] - expected[0]) / case.result[0]))
    assert steps.max() <= case.steps
    assert len(np.unique(expected[0])) > 3
    targets = [node.target for node in program.graph.nodes]
    assert case.target in targets
    assert targets.count(aten.round.default) == 0, "no arithmetic on integers"


# -- Integers that move ------------------------------------------------------------------------------------------------

MOVES: dict[str, tuple[str, list[str], dict[str, Any], dict[str, Any]]] = {
    "flatten": ("Flatten", [], {}, {}),
    "reshape": ("Reshape", ["to"], {"to": np.array([2, 2, 72])}, {}),
    "transpose": ("Transpose", [], {}, {"perm": [0, 2, 3, 1]}),
    "unsqueeze": ("Unsqueeze", ["at"], {"at": np.array([1])}, {}),
    "expand": ("Expand", ["to"], {"to": np.array([3, 2, 4, 6, 6])}, {}),
    "slice": ("Slice", ["from", "to", "at"], {"from": [1], "to": [5], "at": [2]}, {}),
    "gather": ("Gather", ["at"], {"at": np.array([3, 0])}, {"axis": 1}),
    "max_pool": ("MaxPool", [], {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "pad": ("Pad", ["by", "with"], {"by": np.array([0, 0, 1, 1, 0, 0, 1, 2]), "with": ZERO}, {}),
    "pad_by_another_step": ("Pad", ["by", "with"], {"by": np.array([0, 0, 1, 1, 0, 0, 1, 2]), "with": np.uint8(7)}, {}),
    "nearest": ("Resize", ["", "by"], {"by": np.array([1, 1, 2, 2], np.float32)}, {"mode": "nearest"}),
    "depth_to_space": ("DepthToSpace", [], {}, {"blocksize": 2}),
    "identity": ("Identity", [], {}, {}),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_integers_keeps_them_on_their_grid(name: str, tmp_path: Path) -> None:
    """One fake-quantize and the move: no integers are left in the program."""
    operator, rest, weights, attributes = MOVES[name]
    inputs = {"x": rng().uniform(-6, 6, IMAGE).astype(np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node(operator, ["xq", *rest], ["moved"], **attributes),
        helper.make_node("DequantizeLinear", ["moved", "sx", "zx"], ["y"]),
    ]
    proto = model(nodes, inputs, {"sx": SCALE, "zx": ZERO, **weights})
    program, (found,), (expected,) = both(tmp_path, proto, inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert [node.target for node in program.graph.nodes].count(FAKE_QUANTIZE) == 1
    assert not program.graph.find_nodes(op="call_function", target=aten._to_copy.default)


def test_split_and_concat_of_integers_stay_on_one_grid(tmp_path: Path) -> None:
    inputs = {"x": rng().uniform(-6, 6, IMAGE).astype(np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("Split", ["xq", "parts"], ["first", "second"], axis=1),
        helper.make_node("Concat", ["second", "first"], ["joined"], axis=1),
        helper.make_node("DequantizeLinear", ["joined", "sx", "zx"], ["y"]),
    ]
    weights = {"sx": SCALE, "zx": ZERO, "parts": np.array([1, 3])}
    program, (found,), (expected,) = both(tmp_path, model(nodes, inputs, weights), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert [node.target for node in program.graph.nodes].count(FAKE_QUANTIZE) == 1


def test_a_clip_of_integers_is_a_smaller_grid(tmp_path: Path) -> None:
    inputs = {"x": rng().uniform(-9, 9, IMAGE).astype(np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("Clip", ["xq", "low", "high"], ["cut"]),
        helper.make_node("DequantizeLinear", ["cut", "sx", "zx"], ["y"]),
    ]
    weights = {"sx": SCALE, "zx": ZERO, "low": np.uint8(100), "high": np.uint8(240)}
    program, (found,), (expected,) = both(tmp_path, model(nodes, inputs, weights), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    (node,) = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    assert node.args[4:] == (100 - 128, 240 - 128)


def test_rows_of_a_stored_table_are_an_embedding_of_weights_on_a_grid(tmp_path: Path) -> None:
    inputs = {"ids": np.array([[3, 0, 7]])}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("DequantizeLinear", ["rows", "s", "z"], ["y"]),
    ]
    weights = {"table": rng().integers(0, 255, (9, 4)).astype(np.uint8), "s": SCALE, "z": ZERO}
    program, (found,), (expected,) = both(tmp_path, model(nodes, inputs, weights), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        FAKE_QUANTIZE, aten.embedding.default,
    ]  # fmt: skip
    assert len(program.parameters()) == 1


# -- Integers as they are ----------------------------------------------------------------------------------------------


def integers(*sizes: int, seed: int = 0) -> Array:
    return rng(seed).integers(0, 256, sizes).astype(np.uint8)


PRODUCTS = {
    "matmul": ("MatMulInteger", (3, 8), signed(8, 5), ()),
    "matmul_with_zero_points": ("MatMulInteger", (3, 8), signed(8, 5), (np.uint8(7), signed(5, seed=3))),
    "convolution": ("ConvInteger", (2, 3, 6, 6), signed(4, 3, 3, 3), ()),
    "convolution_with_zero_points": ("ConvInteger", (2, 3, 6, 6), signed(4, 3, 3, 3), (np.uint8(7), np.int8(0))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_integer_products_are_exact(name: str, tmp_path: Path) -> None:
    operator, sizes, weight, zeros = PRODUCTS[name]
    names = ["zx", "zw"][: len(zeros)]
    inputs = {"x": integers(*sizes)}
    nodes = [helper.make_node(operator, ["x", "w", *names], ["y"])]
    proto = model(nodes, inputs, {"w": weight, **dict(zip(names, zeros, strict=True))})
    _, (found,), (expected,) = both(tmp_path, proto, inputs)
    np.testing.assert_array_equal(found, expected)


def test_dynamic_quantization_is_exact(tmp_path: Path) -> None:
    inputs = {"x": rng().normal(size=(7, 9)).astype(np.float32)}
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "y1", "y2"])]
    _, found, expected = both(tmp_path, model(nodes, inputs, {}, outputs=3), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


AXES: list[dict[str, Any]] = [{"axis": 0}, {"axis": 2}, {"axis": 1, "block_size": 2}, {"axis": 2, "block_size": 3}]


@pytest.mark.parametrize("attributes", AXES)
@pytest.mark.parametrize("stored", [False, True])
def test_dequantization_along_an_axis_and_by_blocks(attributes: dict[str, Any], stored: bool, tmp_path: Path) -> None:
    sizes = (2, 4, 5)
    axis, block = attributes["axis"], attributes.get("block_size", 0)
    many = tuple(-(-s // block) if d == axis else s for d, s in enumerate(sizes)) if block else (sizes[axis],)
    weights = {"s": rng(2).uniform(0.01, 0.1, many).astype(np.float32), "z": integers(*many, seed=3)}
    given = {"x": integers(*sizes)}
    unused = {"flag": np.zeros(sizes, np.float32)}
    nodes = [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["real"], **attributes)]
    nodes.append(helper.make_node("Add", ["real", "flag"], ["y"]))
    inputs = unused if stored else {**given, **unused}
    weights |= given if stored else {}
    program, (found,), (expected,) = both(tmp_path, model(nodes, inputs, weights), inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert ("x" in program.parameters()) == stored


@pytest.mark.parametrize("zero", [False, True])
def test_quantization_by_blocks(zero: bool, tmp_path: Path) -> None:
    inputs = {"x": rng().normal(size=(3, 7)).astype(np.float32)}
    weights = {"s": rng(2).uniform(0.01, 0.1, (3, 3)).astype(np.float32)}
    weights |= {"z": integers(3, 3, seed=3)} if zero else {}
    nodes = [helper.make_node("QuantizeLinear", ["x", *weights], ["y"], axis=1, block_size=3)]
    _, (found,), (expected,) = both(tmp_path, model(nodes, inputs, weights), inputs)
    np.testing.assert_array_equal(found, expected)


def test_more_than_one_scale_without_block_size_is_refused_where_they_do_not_fit(tmp_path: Path) -> None:
    inputs = {"x": integers(3, 7)}
    nodes = [helper.make_node("DequantizeLinear", ["x", "s"], ["y"], axis=1)]
    onnx.save(model(nodes, inputs, {"s": np.ones((3, 3), np.float32)}), tmp_path / "one.onnx")
    with pytest.raises(TraceError, match="DequantizeLinear"):
        load_onnx(tmp_path / "one.onnx")


def test_float_types_are_not_grids(tmp_path: Path) -> None:
    inputs = {"x": np.zeros((2, 2), np.float32)}
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    proto = model([helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], inputs, {"s": SCALE})
    proto.graph.initializer.append(zero)
    onnx.save(proto, tmp_path / "one.onnx")
    with pytest.raises(TraceError, match="no integer grid"):
        load_onnx(tmp_path / "one.onnx")
