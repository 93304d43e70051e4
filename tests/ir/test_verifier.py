"""Each rule, broken once: the error names the node, what was expected and what was found."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import VerificationError
from tersor.ir.operators import FAKE_QUANTIZE, OBSERVE
from tersor.ir.program import Program
from tersor.ir.sparsity import Channel, Unstructured
from tersor.ir.stage import Stage
from tersor.ir.verifier import verify

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x).relu()  # the line that errors point to
        return result


@cache
def traced() -> Program:
    torch.manual_seed(0)
    return trace(Net(), (torch.randn(2, 3),))


def float_program() -> Program:
    return traced().copy()


def quantized() -> Program:
    """The weight behind a per-channel fake-quantize."""
    program = float_program()
    linear = node_of(program, aten.linear.default)
    program.add_tensor("scale", torch.full((4,), 0.1))
    program.add_tensor("zero_point", torch.zeros(4, dtype=torch.int32))
    with program.graph.inserting_before(linear):
        grid = program.attribute("scale"), program.attribute("zero_point")
        weight = program.call(FAKE_QUANTIZE, [linear.args[1], *grid, 0, -127, 127], like=linear)
    linear.update_arg(1, weight)
    program.stage = Stage.FAKE_QUANT
    return program


def node_of(program: Program, target: object) -> fx.Node:
    found: fx.Node = next(node for node in program.graph.nodes if node.target == target)
    return found


def relu(program: Program) -> fx.Node:
    return node_of(program, aten.relu.default)


def insert(program: Program, target: Callable[..., object], *args: Any) -> fx.Node:
    """A call between relu and the output, which then returns it; its shape is relu's, true or not."""
    last = relu(program)
    with program.graph.inserting_after(last):
        node = program.graph.call_function(target, (last, *args))
    node.meta = dict(last.meta)
    program.graph.output_node().args = ((node,),)
    return node


# -- breaking one rule at a time -------------------------------------------------------------------------------------


def out_of_order(program: Program) -> None:
    relu(program).append(node_of(program, aten.linear.default))


def two_outputs(program: Program) -> None:
    program.graph.create_node("output", "output", ((relu(program),),))


def nested_output(program: Program) -> None:
    program.graph.output_node().args = (([relu(program)],),)


def one_output(program: Program) -> None:
    program.graph.output_node().args = (relu(program),)


def method(program: Program) -> None:
    with program.graph.inserting_before(program.graph.output_node()):
        program.graph.call_method("relu", (relu(program),))


def python_function(program: Program) -> None:
    insert(program, operator.matmul)


def foreign(program: Program) -> None:
    insert(program, torch.ops.prims.neg.default)


def quantization_in_float(program: Program) -> None:
    program.stage = Stage.FLOAT


def in_place(program: Program) -> None:
    insert(program, aten.relu_.default)


def view(program: Program) -> None:
    insert(program, aten.view.default, [2, 4])


def missing_tensor(program: Program) -> None:
    del program.module.linear.weight  # type: ignore[union-attr]  # a module


def dangling(program: Program) -> None:
    program.add_tensor("spare", torch.zeros(1))


def sparsity_of_nothing(program: Program) -> None:
    program.sparsity["linear.wait"] = Unstructured(0.5)


def sparsity_that_is_not(program: Program) -> None:
    program.sparsity["linear.weight"] = Channel((1,))


def leftover(program: Program) -> None:
    relu(program).meta["plan"] = "quantize"


def extra_input(program: Program) -> None:
    with program.graph.inserting_before(program.placeholders[0]):
        program.graph.placeholder("y").meta = dict(program.placeholders[-1].meta)


def changed_input(program: Program) -> None:
    program.placeholders[0].meta = dict(relu(program).meta)


def extra_result(program: Program) -> None:
    program.graph.output_node().args = ((relu(program), relu(program)),)


def no_shape(program: Program) -> None:
    del relu(program).meta["val"]


def stale_shape(program: Program) -> None:
    relu(program).meta["val"] = program.placeholders[0].meta["val"]


def refused_inputs(program: Program) -> None:
    program.set_tensor("linear.weight", torch.zeros(4, 5))
    node = node_of(program, "linear.weight")
    node.meta["val"] = program.shapes.fake(program.tensor("linear.weight"))


def set_scale(value: Tensor) -> Callable[[Program], None]:
    def breaks(program: Program) -> None:
        program.set_tensor("scale", value)
        node = node_of(program, "scale")
        node.meta["val"] = program.shapes.fake(value)

    return breaks


def set_zero_point(value: Tensor) -> Callable[[Program], None]:
    def breaks(program: Program) -> None:
        program.set_tensor("zero_point", value)
        node_of(program, "zero_point").meta["val"] = program.shapes.fake(value)

    return breaks


def computed_scale(program: Program) -> None:
    node = node_of(program, FAKE_QUANTIZE)
    with program.graph.inserting_before(node):
        node.update_arg(1, program.call(aten.abs.default, [node.args[1]], like=node))


def empty_grid(program: Program) -> None:
    node_of(program, FAKE_QUANTIZE).update_arg(5, -127)


RULES: dict[str, tuple[Callable[[], Program], Callable[[Program], None], str, object]] = {
    "order": (float_program, out_of_order, "the graph is not well formed", None),
    "two outputs": (float_program, two_outputs, "a graph ends in its one output", None),
    "nested output": (float_program, nested_output, "returns a flat tuple", None),
    "bare output": (float_program, one_output, "returns a flat tuple", None),
    "method": (float_program, method, "call_method is not part of the IR", "relu_1"),
    "python function": (float_program, python_function, "not an operator", "matmul"),
    "foreign operator": (float_program, foreign, "operator of a foreign library", "neg_default"),
    "tersor in float": (quantized, quantization_in_float, "operator of a foreign library", "fake_quantize"),
    "in place": (float_program, in_place, "writes to its input", "relu__default"),
    "view": (float_program, view, "views are written as aten.reshape", "view_default"),
    "missing tensor": (float_program, missing_tensor, "reads 'linear.weight', which does not exist", "linear_weight"),
    "dangling": (float_program, dangling, "1 tensors are not read", None),
    "sparsity of nothing": (float_program, sparsity_of_nothing, "of 'linear.wait', which does not exist", None),
    "sparsity": (float_program, sparsity_that_is_not, "'linear.weight' is not sparse as promised", None),
    "leftover": (float_program, leftover, r"annotations \['plan'\] were left behind", "relu"),
    "extra input": (float_program, extra_input, "the graph's inputs are not the signature's", None),
    "changed input": (float_program, changed_input, "input 'x' changed", "x"),
    "extra result": (float_program, extra_result, "the number of outputs changed", None),
    "no shape": (float_program, no_shape, "the node has no shape", "relu"),
    "stale shape": (float_program, stale_shape, "the shape recorded for aten.relu is stale", "relu"),
    "refused": (float_program, refused_inputs, "aten.linear.default does not take these inputs", "linear"),
    "zero scale": (quantized, set_scale(torch.zeros(4)), "not positive and finite", "fake_quantize"),
    "negative scale": (quantized, set_scale(torch.tensor([1.0, 1, 1, -1])), "not positive", "fake_quantize"),
    "infinite scale": (quantized, set_scale(torch.full((4,), torch.inf)), "not positive", "fake_quantize"),
    "scale that is no number": (quantized, set_scale(torch.full((4,), torch.nan)), "not positive", "fake_quantize"),
    "short scale": (quantized, set_scale(torch.ones(3)), "do not fit their axis", "fake_quantize"),
    "one scale": (quantized, set_scale(torch.tensor(1.0)), "do not fit their axis", "fake_quantize"),
    "computed scale": (quantized, computed_scale, "are tensors of the program", "fake_quantize"),
    "zero point": (quantized, set_zero_point(torch.full((4,), 128)), "zero point is off its grid", "fake_quantize"),
    "float zero point": (quantized, set_zero_point(torch.zeros(4)), "zero point is off its grid", "fake_quantize"),
    "empty grid": (quantized, empty_grid, "an empty grid", "fake_quantize"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_named_with_its_node(rule: str) -> None:
    make, breaks, message, node = RULES[rule]
    program = make()
    program.verify()
    breaks(program)
    with pytest.raises(VerificationError, match=message) as caught:
        program.verify()
    assert caught.value.node == node


def test_the_error_points_to_the_users_line() -> None:
    program = float_program()
    stale_shape(program)
    with pytest.raises(VerificationError) as caught:
        program.verify()
    lines = dict(line.strip().split(":", 1) for line in str(caught.value).splitlines()[1:])
    assert lines["expected"].strip() == "float32[2, 4]"
    assert lines["found"].strip() == "float32[2, 3]"
    assert "test_verifier.py" in lines["source"]
    assert "the line that errors point to" in lines["source"]


def test_a_quantized_program_is_well_formed() -> None:
    quantized().verify()


def test_observers_belong_to_no_float_program() -> None:
    program = float_program()
    insert(program, OBSERVE, "group", None, -128, 127, False)
    with pytest.raises(VerificationError) as caught:
        program.verify()
    assert caught.value.node == "observe_default"


def test_shapes_can_be_checked_where_something_changed_alone() -> None:
    program = float_program()
    stale_shape(program)
    verify(program, shapes=[node_of(program, aten.linear.default)])
    with pytest.raises(VerificationError, match="stale"):
        verify(program, shapes=[relu(program)])
