"""Graphs made to harm: each is refused by one clear error, or is harmless. No time, no memory, no other exception.

What the mutants of `fuzz.py` found stands here under its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, helper, numpy_helper

from tersor.frontends.onnx import budget
from tersor.frontends.onnx.load import load_onnx
from tersor.ir.errors import ArchiveError, TraceError

from .hostile import HUGE, Shape, build, floats, load, node, operators, refusal, values
from .hostile import limited as limited

# -- Turns, nodes and depth --------------------------------------------------------------------------------------------


def looping(
    body: Sequence[NodeProto], result: str = "s", stacked: str | None = None, **weights: Any
) -> onnx.ModelProto:
    """x goes round a body 2^62 times."""
    names = ["on", result, *([stacked] if stacked else [])]
    graph = helper.make_graph(list(body), "body", values("i", "on", "s"), values(*names))
    outputs = ["y", "all"] if stacked else ["y"]
    turn = helper.make_node("Loop", ["turns", "", "x"], outputs, body=graph)
    return build([turn], {"x": ["n", 2]}, weights={"turns": 1 << 62, **weights})


def test_a_loop_of_no_nodes_does_not_turn_for_ever(tmp_path: Path) -> None:
    refusal(looping([]), tmp_path, "unfold to too much", "y")


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As all is refused that is larger, the budget itself need not be used up by every test."""
    monkeypatch.setattr(budget, "_FREE_WORK", 3_000)


@pytest.mark.usefixtures("small_budget")
def test_a_loop_that_computes_constants_does_not_turn_for_ever(tmp_path: Path) -> None:
    refusal(looping([node("Exp", "k", "z")], k=np.ones(4)), tmp_path, "unfold to too much", "z")


def test_a_constant_in_a_loop_is_not_read_without_end(tmp_path: Path) -> None:
    """A MiB a turn, each kept."""
    constant = node("Constant", "", "c", value=numpy_helper.from_array(np.ones(1 << 18, np.float32)))
    refusal(looping([constant], stacked="c"), tmp_path, "again and again", "c")


def test_loops_within_loops_do_not_read_without_end(tmp_path: Path) -> None:
    inner = helper.make_graph([node("Identity", "w", "v")], "inner", values("j", "go", "t"), values("go", "v"),
                              [numpy_helper.from_array(np.ones(1 << 18, np.float32), "w")])  # fmt: skip
    body = helper.make_node("Loop", ["one", "", "s"], ["u"], body=inner)
    with pytest.raises(TraceError, match="again and again"):
        load(looping([body], one=1, stacked="u"), tmp_path)


@pytest.mark.usefixtures("small_budget")
def test_a_function_of_two_calls_of_a_function_of_two_calls(tmp_path: Path) -> None:
    """2^40 nodes, from forty."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("my", 1)]
    functions = [helper.make_function("my", "F0", ["a"], ["b"], [node("Relu", "a", "b")], opsets)]
    for level in range(1, 40):
        twice = [node(f"F{level - 1}", "a", "t", domain="my"), node(f"F{level - 1}", "t", "b", domain="my")]
        functions.append(helper.make_function("my", f"F{level}", ["a"], ["b"], twice, opsets))
    model = build([node("F39", "x", domain="my")], {"x": ["n", 2]}, functions=functions)
    with pytest.raises(TraceError, match="unfold to too much"):
        load(model, tmp_path)


def test_functions_that_call_each_other_through_branches(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("my", 1)]
    graph = helper.make_graph([node("Again", "a", "r", domain="my")], "branch", [], values("r"))
    yes = node("Constant", "", "c", value=numpy_helper.from_array(np.array(True)))
    choice = node("If", "c", "b", then_branch=graph, else_branch=graph)
    function = helper.make_function("my", "Again", ["a"], ["b"], [yes, choice], opsets)
    model = build([node("Again", "x", domain="my")], {"x": [2]}, functions=[function])
    with pytest.raises(TraceError, match="too deeply"):
        load(model, tmp_path)


# -- Sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[1 << 62, 3], [1 << 62], [HUGE, HUGE], [0, 1 << 62, 1 << 62], [1] * 1000, ["n"] * 9])
def test_an_input_of_impossible_sizes(shape: list[int | str], tmp_path: Path) -> None:
    refusal(build([node("Relu", "x")], {"x": shape}), tmp_path, "input 'x' has impossible sizes")


@pytest.mark.parametrize("dims", [[1 << 62, 1 << 62], [-1, -4], [0, 1 << 62, 4], [1] * 3000, [1 << 62] * 3000])
def test_a_tensor_of_impossible_sizes(dims: list[int], tmp_path: Path) -> None:
    model = build([node("Add", "x w")], {"x": [4]}, weights={"w": np.ones(4, np.float32)})
    model.graph.initializer[0].dims[:] = dims
    refusal(model, tmp_path, "tensor 'w' has impossible sizes", "y")


def test_an_operator_that_gives_impossibly_many_axes(tmp_path: Path) -> None:
    model = build([node("Expand", "x to")], {"x": [1]}, weights={"to": np.ones(4000, np.int64)})
    refusal(model, tmp_path, "too many axes", "y")


def test_axes_that_are_dynamic_one_and_all(tmp_path: Path) -> None:
    """sympy multiplies their sizes in all ways: with twelve it takes a minute."""
    nodes = [node("Reshape", "b to", "spread"), node("Add", "a spread", "c"), node("MatMul", "c w")]
    sizes: dict[str, Shape] = {"a": [f"n{i}" for i in range(6)], "b": [f"m{i}" for i in range(6)]}
    model = build(nodes, sizes, weights={"w": np.ones((4, 4), np.float32), "to": [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]})
    refusal(model, tmp_path, "too many axes", "c")


def test_a_size_squared_again_and_again(tmp_path: Path) -> None:
    """The integers beside the size grow too: 3^(2^60) has more digits than there are atoms."""
    nodes = [node("Shape", "x", "s0"), *(node("Mul", f"s{i} s{i}", f"s{i + 1}") for i in range(60))]
    model = build([*nodes, node("Reshape", "x s60")], {"x": ["n", 3]})
    refusal(model, tmp_path, "beyond 64 bits", "s5")


def test_a_size_by_a_formula_without_end(tmp_path: Path) -> None:
    """s = (s + 1) * s // (s + 7), over and over: sympy would take hours."""
    nodes = [node("Shape", "x", "all"), node("Gather", "all zero", "s0")]
    for i in range(100):
        nodes += [node("Add", f"s{i} one", f"a{i}"), node("Mul", f"a{i} s{i}", f"m{i}")]
        nodes += [node("Add", f"s{i} seven", f"b{i}"), node("Div", f"m{i} b{i}", f"s{i + 1}")]
    model = build([*nodes, node("Expand", "x s100")], {"x": ["n"]}, weights={"zero": [0], "one": [1], "seven": [7]})
    with pytest.raises(TraceError, match="too long a formula"):
        load(model, tmp_path)


@pytest.mark.parametrize("operator", ["Concat", "Tile", "Expand", "Gather"])
def test_sizes_by_the_billion(operator: str, tmp_path: Path) -> None:
    """A vector of sizes, some of which are known when the model runs alone, made ever longer."""
    attributes: dict[str, Any] = {"axis": 0} if operator in ("Concat", "Gather") else {}
    operand = {"Concat": "s0 " * 5000, "Tile": "s0 huge", "Expand": "s0 wide", "Gather": "s0 places"}[operator]
    nodes = [node("Shape", "x", "s0"), node(operator, operand, **attributes)]
    weights = {"huge": [HUGE], "wide": [HUGE, 2], "places": np.zeros(1 << 19, np.int64)}
    program = load(build(nodes, {"x": ["n", 3]}, weights=weights), tmp_path)
    assert len(program.graph.nodes) < 6000


# -- Constants ---------------------------------------------------------------------------------------------------------


def test_a_constant_doubled_sixty_times(tmp_path: Path) -> None:
    nodes = [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(60)]
    model = build([*nodes, node("Slice", "c60 zero one")], {}, weights={"c0": [1.0, 2.0], "zero": [0], "one": [1]})
    with pytest.raises(TraceError, match="c"):
        load(model, tmp_path)


def test_constants_doubled_until_they_are_left_to_run_time(tmp_path: Path) -> None:
    nodes = [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(30)]
    program = load(build([*nodes, node("Neg", "c30")], {}, weights={"c0": np.ones(2, np.float32)}), tmp_path)
    assert sum(tensor.numel() for tensor in program.tensors().values()) <= 1 << 20


def test_many_constants_that_are_each_small_enough(tmp_path: Path) -> None:
    """Each of 4 MiB, of which there would be a thousand."""
    nodes = [node("ConstantOfShape", "million", "c0"), *(node("Exp", f"c{i}", f"c{i + 1}") for i in range(1000))]
    nodes.append(helper.make_node("Sum", [f"c{i}" for i in range(1001)], ["y"]))
    load(build(nodes, {}, weights={"million": [1 << 20]}), tmp_path)


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (node("AveragePool", "c", kernel_shape=[1 << 19], strides=[1]), "avg_pool1d.default"),
        (node("MaxPool", "c", kernel_shape=[1 << 19], strides=[1]), "max_pool1d.default"),
        (node("Einsum", "c c", equation="abi,abj->"), "einsum.default"),
        (node("Einsum", "c c c", equation="abi,abj,abi->abj"), "einsum.default"),
        (node("MatMul", "turned c"), "matmul.default"),
    ],
)
def test_what_multiplies_sizes_is_left_to_run_time(step: NodeProto, left: str, tmp_path: Path) -> None:
    nodes = [node("ConstantOfShape", "sizes", "c"), node("Transpose", "c", "turned", perm=[0, 2, 1]), step]
    assert left in operators(load(build(nodes, {}, weights={"sizes": [1, 1, 1 << 20]}), tmp_path))


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_the_one_quotient_that_ends_a_process(kind: type[Any], tmp_path: Path) -> None:
    weights = {"low": np.array([1, np.iinfo(kind).min], kind), "minus": np.array([1, -1], kind)}
    refusal(build([node("Div", "low minus")], {}, weights=weights), tmp_path, "the quotient is beyond", "y")
    apart = {"low": weights["low"], "minus": weights["minus"][::-1].copy()}
    assert load(build([node("Div", "low minus")], {}, weights=apart), tmp_path)().tolist() == [-1, np.iinfo(kind).min]


@pytest.mark.parametrize(
    ("step", "weights", "message"),
    [
        (node("Pad", "x p", mode="reflect"), {"p": [0, HUGE]}, "so much is not padded"),
        (node("Pad", "x p", mode="wrap"), {"p": [0, 1 << 62]}, "so much is not padded"),
        (node("Split", "x", num_outputs=HUGE), {}, "number of parts"),
        (node("Split", "x", num_outputs=-1), {}, "number of parts"),
    ],
)
def test_absurd_amounts(step: NodeProto, weights: dict[str, Any], message: str, tmp_path: Path) -> None:
    refusal(build([step], {"x": [8]}, weights=weights), tmp_path, message, "y")


def test_a_slice_backwards_through_an_absurd_axis(tmp_path: Path) -> None:
    weights = {"start": [-1], "end": [1], "axes": [0], "steps": [-1]}
    refusal(
        build([node("Slice", "x start end axes steps")], {"x": [HUGE]}, weights=weights), tmp_path, "backwards", "y"
    )


def test_a_resize_to_an_absurd_size(tmp_path: Path) -> None:
    resize = helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode="nearest")
    model = build([resize], {"x": [1, 1, 8]}, weights={"to": [1, 1, HUGE + 1]})
    refusal(model, tmp_path, "nearest point otherwise|too long", "y")


@pytest.mark.parametrize("operator", ["Expand", "Tile"])
def test_an_absurd_size_is_not_made_at_import(operator: str, tmp_path: Path) -> None:
    model = build([node(operator, "c to")], {}, weights={"c": np.ones((1, 1), np.float32), "to": [1 << 20, 1 << 20]})
    assert operators(load(model, tmp_path)) in (["expand.default"], ["repeat.default"])


def test_an_absurd_range_is_not_made_at_import(tmp_path: Path) -> None:
    model = build([node("Range", "zero huge one")], {}, weights={"zero": 0, "huge": HUGE, "one": 1})
    assert operators(load(model, tmp_path)) == ["arange.start_step"]


# -- Names and text ----------------------------------------------------------------------------------------------------

NAMES = [
    "self",
    "class",
    "None",
    "True",
    "print",
    "a.b",
    "a b",
    "0",
    "²",
    "\u202e\U0001f600",
    "torch",
    "_",
    "x-y",
    "inf",
]


def test_inputs_of_any_name(tmp_path: Path) -> None:
    """Names are no code: each input is reached under its own."""
    program = load(build([helper.make_node("Sum", NAMES, ["y"])], {name: [2] for name in NAMES}), tmp_path)
    given = {name: torch.full((2,), 2.0**place) for place, name in enumerate(NAMES)}
    assert program(**given).tolist() == [2.0 ** len(given) - 1] * 2


def test_results_of_any_name(tmp_path: Path) -> None:
    """Each is read again after the others, as are weights, which generated code finds by `self`."""
    nodes = [helper.make_node("Add", ["x", "w"], [name]) for name in NAMES]
    nodes.append(helper.make_node("Sum", [*NAMES, "x", "w"], ["y"]))
    program = load(build(nodes, {"x": [2]}, weights={"w": np.ones(2, np.float32)}), tmp_path)
    assert program(torch.ones(2)).tolist() == [2.0 * (len(NAMES) + 1)] * 2


@pytest.mark.parametrize("name", [*NAMES, "a." * 3000, "forward", "__class__.__init__", "..", "a" * 5000, "x.self"])
def test_a_weight_of_any_name(name: str, tmp_path: Path) -> None:
    step = node("Add", "x w")
    step.input[1] = name
    program = load(build([step], {"x": [2]}, weights={name: np.ones(2, np.float32)}), tmp_path)
    assert program(torch.ones(2)).tolist() == [2.0, 2.0]
    assert program.copy().verify()(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("names", [("a.b", "a"), ("a", "a.b"), ("a.b.c", "a.b"), ("a_b", "a.b")])
def test_weights_one_of_which_is_a_prefix(names: tuple[str, str], tmp_path: Path) -> None:
    nodes = [node("Add", f"x {names[0]}", "t"), node("Mul", f"t {names[1]}")]
    weights = {names[0]: floats(1, 2), names[1]: floats(3, 4)}
    assert load(build(nodes, {"x": [2]}, weights=weights), tmp_path)(torch.zeros(2)).tolist() == [3.0, 8.0]


@pytest.mark.parametrize("field", ["graph", "node", "operator", "input", "initializer", "dimension", "attribute"])
def test_text_that_is_not_utf8(field: str, tmp_path: Path) -> None:
    model = build([node("Concat", "x weight", axis=0)], {"x": ["nnnn"]}, weights={"weight": floats(1)})
    model.graph.name, model.graph.node[0].name = "ggggg", "ooooo"
    text = {"graph": b"ggggg", "node": b"ooooo", "operator": b"Concat", "input": b"x", "dimension": b"nnnn"}
    text |= {"initializer": b"weight", "attribute": b"axis"}
    data = model.SerializeToString()
    (tmp_path / "net.onnx").write_bytes(data.replace(text[field], b"\xff" * len(text[field])))
    with pytest.raises(ArchiveError, match=r"net\.onnx is damaged"):
        load_onnx(tmp_path / "net.onnx")
