from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from tersor.frontends.onnx.call import Call
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.onnx.registry import RULES, add_rule, find, rule
from tersor.frontends.onnx.values import Value
from tersor.ir.errors import ArchiveError, TersorError, TraceError
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.stage import Stage

aten = torch.ops.aten
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str]


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Shape],
    outputs: Sequence[str],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    opset: int = 21,
    **options: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **options)


def load(model: onnx.ModelProto, folder: Path) -> Program:
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return load_onnx(folder / "net.onnx").verify()


def targets(program: Program) -> list[str]:
    return [str(n.target).removeprefix("aten.") for n in program.graph.nodes if n.op == "call_function"]


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# -- Names -------------------------------------------------------------------------------------------------------------


def test_names_types_and_origins_are_those_of_the_file(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["pixel.values", "stem.weight", "stem.bias"], ["/stem/Conv_output_0"], "/stem/Conv"),
        helper.make_node("Relu", ["/stem/Conv_output_0"], ["features"]),
    ]
    weights = {"stem.weight": random(4, 3, 1, 1), "stem.bias": random(4)}
    program = load(build(nodes, {"pixel.values": ["batch", 3, "height", 8]}, ["features"], weights), tmp_path)
    conv = program.graph.find_nodes(op="call_function", target=aten.conv2d.default)[0]
    assert conv.name == "stem_Conv_output_0"
    assert set(program.parameters()) == {"stem.weight", "stem.bias"}
    assert str(Origin.of(conv)) == f"{tmp_path / 'net.onnx'}, in /stem/Conv"
    assert str(program.signature.inputs[0]) == "pixel.values: float32[batch, 3, height, 8]"
    x = torch.randn(2, 3, 5, 8)
    weight, bias = map(torch.from_numpy, weights.values())
    expected = torch.relu(nn.functional.conv2d(x, weight, bias))
    torch.testing.assert_close(program(**{"pixel.values": x}), expected)


def test_several_outputs_come_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["up"]), helper.make_node("Neg", ["x"], ["down"])]
    outputs = load(build(nodes, {"x": [2]}, ["down", "up"]), tmp_path)(torch.tensor([-1.0, 2.0]))
    assert {name: value.tolist() for name, value in outputs.items()} == {"down": [1.0, -2.0], "up": [0.0, 2.0]}


def test_a_name_that_is_also_a_prefix(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "a"], ["y"]), helper.make_node("Mul", ["y", "a.b"], ["z"])]
    program = load(build(nodes, {"x": [2]}, ["z"], {"a": random(2), "a.b": random(2)}), tmp_path)
    assert set(program.parameters()) == {"a", "a_b"}


# -- Shape arithmetic --------------------------------------------------------------------------------------------------


def test_a_shape_chain_becomes_one_reshape(tmp_path: Path) -> None:
    """x.reshape(batch, heads, 2 * length // 2, -1), as exporters write it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Mul", ["length", "two"], ["doubled"]),
        helper.make_node("Div", ["doubled", "two"], ["halved"]),
        helper.make_node("Unsqueeze", ["batch", "front"], ["b"]),
        helper.make_node("Unsqueeze", ["halved", "front"], ["l"]),
        helper.make_node("Concat", ["b", "heads", "l", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    constants = {"zero": 0, "one": 1, "two": 2, "front": [0], "heads": [3], "rest": [-1]}
    weights = {name: np.array(value, dtype=np.int64) for name, value in constants.items()}
    program = load(build(nodes, {"x": ["n", "length", 6]}, ["y"], weights), tmp_path)
    assert targets(program) == ["sym_size.int", "sym_size.int", "reshape.default"]
    assert program.tensors() == {}
    for size in (1, 5):
        x = torch.randn(size, 4, 6)
        torch.testing.assert_close(program(x), x.reshape(size, 3, 4, -1))


def test_equal_sizes_are_one_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["x"], ["first"]),
        helper.make_node("Shape", ["r"], ["second"]),
        helper.make_node("Reshape", ["r", "first"], ["a"]),
        helper.make_node("Reshape", ["r", "second"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    assert targets(load(build(nodes, {"x": ["n", 2]}, ["y"]), tmp_path)).count("sym_size.int") == 1


def test_comparisons_of_sizes_are_decided_where_they_are_certain(tmp_path: Path) -> None:
    """Expand as exporters write it: where the wanted size is -1, one."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Equal", ["shape", "minus"], ["unknown"]),
        helper.make_node("Where", ["unknown", "ones", "shape"], ["to"]),
        helper.make_node("Expand", ["row", "to"], ["y"]),
    ]
    weights = {"minus": np.array([-1, -1]), "ones": np.array([1, 1]), "row": random(1, 3)}
    program = load(build(nodes, {"x": ["n", 3]}, ["y"], weights), tmp_path)
    assert targets(program) == ["sym_size.int", "expand.default"]
    assert program(torch.zeros(4, 3)).shape == (4, 3)


def test_a_shape_that_is_asked_for_is_a_tensor(tmp_path: Path) -> None:
    model = build([helper.make_node("Shape", ["x"], ["y"])], {"x": ["n", 3]}, ["y"])
    assert load(model, tmp_path)(torch.zeros(5, 3)).tolist() == [5, 3]


def test_what_a_file_asks_to_compute_is_bounded(tmp_path: Path) -> None:
    """Constants of any size can be asked for in a few bytes: they are left to run time."""
    nodes = [helper.make_node("ConstantOfShape", ["sizes"], ["y"]), helper.make_node("Exp", ["y"], ["z"])]
    model = build(nodes, {"x": [1]}, ["z"], {"sizes": np.array([1 << 20, 1 << 20])})
    assert targets(load(model, tmp_path)) == ["full.default", "exp.default"]


# -- Linear ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gemm", "gemm_transposed", "matmul_add", "matmul_of_transpose"])
def test_products_with_a_constant_matrix_are_linear(form: str, tmp_path: Path) -> None:
    weight, bias = random(4, 3), random(4)
    matmul = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["b", "p"], ["y"])]
    turned = [helper.make_node("Transpose", ["v"], ["w"], perm=[1, 0]), *matmul]
    forms = {
        "gemm": ([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"w": weight.T.copy()}),
        "gemm_transposed": ([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], {"w": weight}),
        "matmul_add": (matmul, {"w": weight.T.copy()}),
        "matmul_of_transpose": (turned, {"v": weight}),
    }
    nodes, weights = forms[form]
    program = load(build(nodes, {"x": [2, 3]}, ["y"], {**weights, "b": bias}), tmp_path)
    assert targets(program) == ["linear.default"]
    assert set(program.parameters()) == {"b", *weights}
    x = torch.randn(2, 3)
    torch.testing.assert_close(program(x), nn.functional.linear(x, torch.tensor(weight), torch.tensor(bias)))


def test_a_tied_matrix_stays_one_parameter(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"]),
    ]
    program = load(build(nodes, {"x": [2]}, ["y"], {"table": random(5, 3)}), tmp_path)
    assert targets(program) == ["_to_copy.default", "embedding.default", "linear.default"]
    assert set(program.parameters()) == {"table"}


# -- Quantized models --------------------------------------------------------------------------------------------------


def quantized_convolution() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    sx, sw, sy = np.float32(0.05), np.array([0.01, 0.02], np.float32), np.float32(0.1)
    weights = {
        "sx": np.array(sx),
        "zx": np.array(120, np.uint8),
        "sw": sw,
        "zw": np.zeros(2, np.int8),
        "w8": rng.integers(-127, 128, (2, 3, 3, 3)).astype(np.int8),
        "b32": rng.integers(-3000, 3000, 2).astype(np.int32),
        "sb": sx * sw,
        "sy": np.array(sy),
        "zy": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b32", "sb"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "sy", "zy"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    return build(nodes, {"x": ["n", 3, 6, 6]}, ["y"], weights)


def test_a_quantized_model_arrives_with_its_scales(tmp_path: Path) -> None:
    model = quantized_convolution()
    program = load(model, tmp_path)
    assert program.stage is Stage.FAKE_QUANT
    fake = "tersor.fake_quantize.default"
    expected = [fake, fake, "tersor.fake_quantize_bias.default", "conv2d.default", "relu.default", fake]
    assert targets(program) == expected
    assert {"sx", "zx", "sw", "zw", "w8", "b32", "sy", "zy"} == set(program.tensors())
    assert int(program.tensor("zx")) == 120 - 128
    steps = program.tensor("w8").detach() / program.tensor("sw").reshape(-1, 1, 1, 1)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert torch.equal(steps.round(), torch.from_numpy(stored["w8"].astype(np.float32)))


def test_a_quantized_model_gives_the_numbers_of_onnx(tmp_path: Path) -> None:
    model = quantized_convolution()
    x = random(2, 3, 6, 6)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    found = load(model, tmp_path)(torch.from_numpy(x)).detach().numpy()
    steps = np.abs(found - expected) / 0.1
    assert steps.max() < 1.5
    assert (steps > 0.5).mean() < 0.01


# -- Functions and control flow ----------------------------------------------------------------------------------------


def test_a_function_of_the_model_is_imported_in_place(tmp_path: Path) -> None:
    body = helper.make_node("LeakyRelu", ["a"], ["b"])
    reference = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    body.attribute.append(reference)
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function("my.domain", "Bend", ["a"], ["b"], [body], opsets, attributes=["slope"])
    nodes = [helper.make_node("Bend", ["x"], ["y"], domain="my.domain", slope=0.25)]
    model = build(nodes, {"x": [2]}, ["y"], functions=[function])
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    assert load(model, tmp_path)(torch.tensor([-4.0, 4.0])).tolist() == [-1.0, 4.0]


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    call = helper.make_node("Again", ["a"], ["b"], domain="my.domain")
    function = helper.make_function("my.domain", "Again", ["a"], ["b"], [call], [helper.make_opsetid("my.domain", 1)])
    call = helper.make_node("Again", ["x"], ["y"], domain="my.domain")
    with pytest.raises(TraceError, match="call each other too deeply"):
        load(build([call], {"x": [2]}, ["y"], functions=[function]), tmp_path)


def branch(operator: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("result", FLOAT, None)
    return helper.make_graph([helper.make_node(operator, ["x"], ["result"])], operator, [], [value])


def test_a_branch_is_taken_where_the_condition_is_known(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Size", ["shape"], ["rank"]),
        helper.make_node("Equal", ["rank", "two"], ["is_matrix"]),
        helper.make_node("If", ["is_matrix"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    assert targets(load(build(nodes, {"x": ["n", 3]}, ["y"], {"two": np.array(2)}), tmp_path)) == ["relu.default"]


def test_a_branch_that_depends_on_data_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    with pytest.raises(TraceError, match=r"net\.onnx: node 'choice' \(If\): input 0 \('c'\) is computed") as caught:
        load(build(nodes, {"x": [3]}, ["y"]), tmp_path)
    assert caught.value.hint is not None


def test_a_loop_is_unrolled(tmp_path: Path) -> None:
    """Three turns of s = s * w, each s kept: the weight is one parameter."""
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["s", "w"], ["next"]),
            helper.make_node("Identity", ["next"], ["kept"]),
            helper.make_node("Identity", ["going"], ["goes_on"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("turn", "going", "s")],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("goes_on", "next", "kept")],
        [numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w")],
    )
    nodes = [helper.make_node("Loop", ["three", "", "x"], ["last", "all"], body=body)]
    program = load(build(nodes, {"x": [2]}, ["last", "all"], {"three": np.array(3)}), tmp_path)
    assert set(program.parameters()) == {"w"}
    found = program(torch.ones(2))
    assert found["last"].tolist() == [8.0, 27.0]
    assert found["all"].tolist() == [[2.0, 3.0], [4.0, 9.0], [8.0, 27.0]]


# -- Files -------------------------------------------------------------------------------------------------------------


def external(folder: Path, location: str) -> onnx.ModelProto:
    model = build([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [4]}, ["y"], {"w": random(4)})
    (tensor,) = model.graph.initializer
    data = tensor.raw_data
    onnx.external_data_helper.set_external_data(tensor, location, offset=8, length=16)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (folder / "weights.bin").write_bytes(b"\0" * 8 + data)
    return model


def test_data_beside_the_file_is_read(tmp_path: Path) -> None:
    program = load(external(tmp_path, "weights.bin"), tmp_path)
    assert torch.equal(program.tensor("w"), torch.from_numpy(random(4)))


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "", "absent.bin"])
def test_data_elsewhere_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    with pytest.raises(TraceError, match="'w'"):
        load(external(tmp_path / "model", location), tmp_path / "model")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(TraceError, match="outside the model's folder"):
        load(external(tmp_path / "model", "link.bin"), tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(100)])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"bad\.onnx"):
        load_onnx(path)
    with pytest.raises(ArchiveError, match="does not exist"):
        load_onnx(tmp_path / "absent.onnx")


def test_an_old_or_unknown_opset_is_refused(tmp_path: Path) -> None:
    for opset in (6, 1000):
        with pytest.raises(TraceError, match="of an opset that is not read"):
            load(build([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, ["y"], opset=opset), tmp_path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Relu", ["z"], ["y"]), helper.make_node("Relu", ["y"], ["z"])], "nodes in order"),
        ([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])], "given once"),
        ([helper.make_node("Frobnicate", ["x"], ["y"])], r"no import rule for Frobnicate[\s\S]*register one"),
        ([helper.make_node("Concat", ["x"], ["y"])], "attribute 'axis' is missing"),
        ([helper.make_node("Concat", ["x"], ["y"], axis="one")], "wrong type"),
        ([helper.make_node("Transpose", ["x"], ["y"], perm=[0, 5])], "does not take these inputs"),
        ([helper.make_node("Reshape", ["x"], ["y"])], "input 1 is missing"),
        ([helper.make_node("Softmax", ["x"], ["z"])], "an output reads 'y'"),
    ],
)
def test_a_broken_model_is_refused_naming_file_and_node(
    nodes: list[onnx.NodeProto], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TersorError, match=message) as raised:
        load(build(nodes, {"x": [2, 3]}, ["y"]), tmp_path)
    assert "net.onnx" in str(raised.value)


# -- Dimensions --------------------------------------------------------------------------------------------------------


def test_dimensions_named_apart_are_equal_where_an_operator_needs_it(tmp_path: Path) -> None:
    """The batch of each input has a name of its own, or none, and the lengths have theirs."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], start=0, end=1),
        helper.make_node("Concat", ["sizes", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["mask", "to"], ["rows"]),
        helper.make_node("Concat", ["x", "rows"], ["y"], axis=1),
    ]
    inputs: dict[str, Shape] = {"x": ["b", "n"], "mask": ["c", "m"]}
    program = load(build(nodes, inputs, ["y"], {"rest": np.array([-1])}), tmp_path)
    assert [str(spec) for spec in program.signature.inputs] == ["x: float32[b, n]", "mask: float32[b, m]"]
    assert program.history[0].notes == ("dimension c taken to be b",)
    assert program(torch.zeros(2, 3), torch.ones(2, 4)).tolist() == [[0.0] * 3 + [1.0] * 4] * 2


def test_where_equal_dimensions_do_not_help_the_first_error_stands(tmp_path: Path) -> None:
    nodes = [helper.make_node("Concat", ["x", "z"], ["y"], axis=1)]
    with pytest.raises(TraceError, match=r"node 'y' \(Concat\)"):
        load(build(nodes, {"x": ["b", "n"], "z": ["c", "m", 2]}, ["y"]), tmp_path)


# -- Small things that exporters write --------------------------------------------------------------------------------


def test_bits_of_a_constant_without_axes(tmp_path: Path) -> None:
    """torch.onnx writes x & 3 with a scalar."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=INT64),
        helper.make_node("BitwiseAnd", ["i", "three"], ["a"]),
        helper.make_node("BitwiseXor", ["three", "a"], ["b"]),
        helper.make_node("BitwiseOr", ["b", "i"], ["y"]),
    ]
    program = load(build(nodes, {"x": [4]}, ["y"], {"three": np.array(3)}), tmp_path)
    assert program(torch.arange(4.0) + 5).tolist() == [(3 ^ (i & 3)) | i for i in range(5, 9)]


def test_flatten_is_the_reshape_that_pytorch_gives(tmp_path: Path) -> None:
    program = load(build([helper.make_node("Flatten", ["x"], ["y"])], {"x": ["n", 3, 4]}, ["y"]), tmp_path)
    assert targets(program) == ["sym_size.int", "reshape.default"]
    assert program(torch.zeros(2, 3, 4)).shape == (2, 12)


# -- Rules from outside ------------------------------------------------------------------------------------------------


def test_a_rule_can_be_registered_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, ("com.example", "Swish"), [])

    @rule("Swish", domain="com.example")
    def swish(op: Call) -> Value:
        return op.call(aten.silu.default, op.input(0))

    model = build([helper.make_node("Swish", ["x"], ["y"], domain="com.example")], {"x": [2]}, ["y"])
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert targets(load(model, tmp_path)) == ["silu.default"]
    with pytest.raises(TraceError, match="an import rule already"):
        add_rule("Swish", swish, domain="com.example")


def test_rules_are_found_by_opset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, ("", "Fold"), [])

    def old(op: Call) -> Value:
        return op.input(0)

    def new(op: Call) -> Value:
        return op.input(1)

    add_rule("Fold", old, until=9)
    add_rule("Fold", new, since=10, domain="ai.onnx")
    assert [getattr(find("", "Fold", opset), "function", None) for opset in (7, 9, 10, 21)] == [old, old, new, new]
