"""The pass manager: order, verification, promises, and a broken pass named with the first node that differs."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError, TersorError, VerificationError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.signature import Signature
from tersor.ir.stage import Stage
from tersor.ir.verifier import check_shapes, verify
from tersor.passes.base import Pass, PassResult, Promise, Sequence
from tersor.passes.manager import PassManager, changed_nodes
from tersor.passes.progress import listening, track

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.norm(self.first(x)))
        return {"logits": self.second(hidden), "gate": torch.nn.functional.silu(hidden)}


@cache
def traced() -> Program:
    torch.manual_seed(0)
    return trace(Net(), torch.randn(5, 4), dynamic={"x": {0: "batch"}})


def net() -> Program:
    return traced().copy()


def node_of(program: Program, target: Any) -> Any:
    return program.graph.find_nodes(op="call_function", target=target)[0]


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing."""

    def run(self, program: Program) -> PassResult:
        return PassResult(program, modified=False, notes=("looked",))


@dataclass(frozen=True)
class ReplaceSilu(Pass):
    """Replace silu with hardswish, which integer backends lower exactly."""

    promise: ClassVar[Promise] = Promise.APPROXIMATE

    def run(self, program: Program) -> PassResult:
        nodes = program.graph.find_nodes(op="call_function", target=aten.silu.default)
        for node in nodes:
            node.target = aten.hardswish.default
        return PassResult(program, modified=bool(nodes))


class ReplaceSiluExactly(ReplaceSilu):
    promise = Promise.EXACT


@dataclass(frozen=True)
class Edit(Pass):
    """Does what it is told to."""

    edit: Callable[[Program], Any]
    modified: bool = True

    def run(self, program: Program) -> PassResult:
        self.edit(program)
        return PassResult(program, self.modified)


class Approximately(Edit):
    promise = Promise.APPROXIMATE


@dataclass(frozen=True)
class ToFakeQuant(Pass):
    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT

    def run(self, program: Program) -> PassResult:
        return PassResult(program, modified=True)


@dataclass(frozen=True)
class Twice(Sequence):
    def expand(self) -> tuple[Pass, ...]:
        return (Nothing(), ReplaceSilu())


def failure(*passes: Pass, program: Program | None = None, kind: type[TersorError] = PassError) -> TersorError:
    with pytest.raises(kind) as caught:
        PassManager(passes, progress=False).run(program or net())
    return caught.value


# -- order ---------------------------------------------------------------------------------------------------------


def test_the_order_is_checked_before_anything_runs() -> None:
    ran: list[Program] = []
    error = failure(Edit(ran.append), ToFakeQuant(), ToFakeQuant())
    assert "pass 3, to_fake_quant, cannot run at stage fake_quant" in error.what
    assert "left by to_fake_quant" in str(error.found)
    assert ran == []
    assert PassManager([Nothing(), ToFakeQuant()]).check_order(Stage.FLOAT) is Stage.FAKE_QUANT


def test_a_class_or_a_lone_pass_is_refused_with_what_was_meant() -> None:
    with pytest.raises(PassError, match=r"Nothing\(\)"):
        PassManager([Nothing])  # type: ignore[list-item]  # what the test is about
    with pytest.raises(PassError, match=r"PassManager\(\[Nothing"):
        PassManager(Nothing())  # type: ignore[arg-type]


def test_a_sequence_is_run_and_reported_pass_by_pass() -> None:
    result = PassManager([Twice()]).run(net())
    assert [row.name for row in result.report.rows] == ["given", "nothing", "replace_silu"]
    assert [entry.name for entry in result.program.history] == ["trace", "nothing", "replace_silu"]


# -- what runs well ------------------------------------------------------------------------------------------------


def test_the_program_given_stays_as_it_was() -> None:
    program = net()
    text, history = str(program), program.history
    result = PassManager([ReplaceSilu()]).run(program)
    assert str(program) == text
    assert program.history == history
    x = torch.randn(2, 4)
    torch.testing.assert_close(result.program(x)["gate"], nn.functional.hardswish(_hidden(program, x)))


def _hidden(program: Program, x: Tensor) -> Tensor:
    normal = nn.functional.batch_norm(
        nn.functional.linear(x, program.tensor("first.weight"), program.tensor("first.bias")),
        program.tensor("norm.running_mean"), program.tensor("norm.running_var"),
        program.tensor("norm.weight"), program.tensor("norm.bias"),
    )  # fmt: skip
    return normal.relu()


def test_rows_say_what_was_done() -> None:
    program = net()
    result = PassManager([Nothing(), ReplaceSilu()]).run(program)
    given, nothing, replaced = result.report.rows
    assert (given.macs, given.nodes) == (program.cost().macs, len(program.graph.nodes))
    assert (nothing.modified, nothing.sqnr, nothing.notes) == (False, float("inf"), ("looked",))
    assert replaced.modified
    with torch.no_grad():
        before, after = (p.run(program.example or ()) for p in (program, result.program))
    signal = sum(a.double().square().sum() for a in before)
    noise = sum((a.double() - b.double()).square().sum() for a, b in zip(before, after, strict=True))
    expected = 10 * torch.log10(torch.as_tensor(signal / noise)).item()
    assert replaced.sqnr == pytest.approx(expected, abs=1e-3)
    assert replaced.sqnr_total == pytest.approx(expected, abs=1e-3)


def test_without_verification_nothing_is_compared() -> None:
    def negate(program: Program) -> None:
        node_of(program, aten.relu.default).target = aten.neg.default

    result = PassManager([Edit(negate)], verify=False).run(net())
    assert result.report.rows[1].sqnr is None


def test_a_program_in_training_mode_is_compared_in_inference() -> None:
    program = net().train()
    mean = program.tensor("norm.running_mean").clone()
    result = PassManager([Nothing(), ReplaceSilu()]).run(program)
    assert torch.equal(result.program.tensor("norm.running_mean"), mean)
    assert program.module.training


def test_long_passes_tell_how_far_they_are() -> None:
    heard: list[tuple[str, int, int | None]] = []

    def count(program: Program) -> None:
        list(track(range(3), "counting"))

    with listening(lambda *event: heard.append(event)):
        PassManager([Edit(count)]).run(net())
    assert heard == [("counting", 1, 3), ("counting", 2, 3), ("counting", 3, 3)]


# -- planted broken passes -----------------------------------------------------------------------------------------


def test_an_exact_pass_that_changes_numbers_is_named_with_the_first_node() -> None:
    error = failure(Nothing(), ReplaceSiluExactly())
    assert "pass replace_silu_exactly broke its promise (exact)" in error.what
    assert error.node == "silu"
    assert "promise = Promise.APPROXIMATE" in str(error.hint)
    assert "SQNR" in str(error.found)
    assert __file__ in str(error)


def test_a_changed_weight_names_the_first_node_that_reads_it() -> None:
    error = failure(Edit(lambda p: p.set_tensor("second.weight", p.tensor("second.weight") * 1.01)))
    assert error.node == "linear_1"


def test_a_new_node_is_compared_with_the_one_that_it_replaces() -> None:
    def double(program: Program) -> None:
        relu = node_of(program, aten.relu.default)
        with program.graph.inserting_after(relu):
            new = program.call(aten.neg.default, (relu.args[0],), like=relu)
        program.replace(relu, new)

    error = failure(Edit(double))
    assert error.node == "neg"


def test_a_pass_may_be_off_by_rounding() -> None:
    PassManager([Edit(lambda p: p.set_tensor("second.weight", p.tensor("second.weight") * (1 + 1e-6)))]).run(net())


def test_a_bad_graph_names_pass_and_node() -> None:
    def forget_shape(program: Program) -> None:
        del node_of(program, aten.relu.default).meta[KEY]

    error = failure(Edit(forget_shape), kind=VerificationError)
    assert "after pass edit" in str(error)
    assert error.node == "relu"


def test_an_annotation_left_behind_names_pass_and_node() -> None:
    def annotate(program: Program) -> None:
        node_of(program, aten.relu.default).meta["plan"] = 1

    error = failure(Edit(annotate), kind=VerificationError)
    assert "after pass edit" in str(error)
    assert error.node == "relu"


def test_a_weight_of_another_shape_is_found() -> None:
    error = failure(Edit(lambda p: p.set_tensor("first.weight", torch.randn(9, 4))), kind=VerificationError)
    assert error.node == "first_weight"
    assert "stale" in str(error)


def test_a_write_into_a_shared_tensor_is_refused_by_name() -> None:
    def write(program: Program) -> None:
        with torch.no_grad():
            program.tensor("second.bias").add_(0)

    error = failure(Edit(write))
    assert "'second.bias'" in error.what
    assert "set_tensor" in str(error.hint)


def test_a_write_that_torch_does_not_count_is_what_the_error_asks_about() -> None:
    error = failure(Edit(lambda program: program.tensor("second.bias").data.add_(1)))
    assert error.node is None
    assert "set_tensor" in str(error.hint)


def test_whatever_a_pass_raises_names_the_pass() -> None:
    def fail(program: Program) -> None:
        raise ValueError("no such layer")

    error = failure(Nothing(), Edit(fail))
    assert error.what == "pass edit failed: ValueError: no such layer"
    assert isinstance(error.__cause__, ValueError)

    def refuse(program: Program) -> None:
        raise VerificationError("not here", node="relu")

    refused = failure(Edit(refuse), kind=VerificationError)
    assert str(refused).startswith("pass edit: not here\n")
    assert refused.node == "relu"


def test_changed_outputs_are_refused_whatever_the_promise() -> None:
    def drop(program: Program) -> None:
        program.graph.output_node().args = (program.outputs[:1],)
        outputs = program.signature.outputs.children[0]
        program.signature = Signature(
            program.signature.inputs, program.signature.args, program.signature.kwargs, outputs,
            program.signature.parameters, program.signature.dims,
        )  # fmt: skip

    assert failure(Approximately(drop)).found == "2 outputs became 1"

    def reshape(program: Program) -> None:
        (last, gate) = program.outputs
        with program.graph.inserting_before(program.graph.output_node()):
            new = program.call(aten.unsqueeze.default, (last, 0), like=last)
        program.graph.output_node().args = ((new, gate),)

    assert "logits: torch.float32 (5, 3) became torch.float32 (1, 5, 3)" in str(failure(Approximately(reshape)).found)


def test_values_that_become_nan_are_refused_whatever_the_promise() -> None:
    error = failure(Approximately(lambda p: p.set_tensor("second.bias", torch.full((3,), float("nan")))))
    assert "became NaN" in str(error.found)
    assert error.expected == "values that stay finite"
    assert error.node == "linear_1"


def test_a_change_that_is_not_admitted_is_refused() -> None:
    def replace(program: Program) -> None:
        node_of(program, aten.silu.default).target = aten.hardswish.default

    error = failure(Edit(replace, modified=False))
    assert "says that it did not" in error.what
    assert error.node == "silu"
    tensor = Edit(lambda p: p.set_tensor("second.bias", torch.zeros(3)), modified=False)
    assert "says that it did not" in failure(tensor).what


def test_a_pass_returns_a_result() -> None:
    @dataclass(frozen=True)
    class Forgets(Pass):
        def run(self, program: Program) -> PassResult:
            return program  # type: ignore[return-value]  # what the test is about

    error = failure(Forgets())
    assert str(error).startswith("pass forgets: run did not return a result")


# -- incremental verification --------------------------------------------------------------------------------------


def _swap_target(program: Program, choice: random.Random) -> None:
    node = choice.choice([node for node in program.graph.nodes if node.name in ("relu", "silu")])
    node.target = choice.choice([aten.neg.default, aten.isnan.default, aten.t.default])


def _resize(program: Program, choice: random.Random) -> None:
    name = choice.choice(["first.weight", "first.bias", "second.weight", "norm.bias"])
    shape = list(program.tensor(name).shape)
    shape[0] += choice.choice([0, 1])
    program.set_tensor(name, torch.randn(shape))


def _rewire(program: Program, choice: random.Random) -> None:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    user = choice.choice(calls[1:])
    earlier = [node for node in calls if node < user]
    user.update_arg(0, choice.choice(earlier or calls[:1]))


def _relabel(program: Program, choice: random.Random) -> None:
    node = choice.choice([node for node in program.graph.nodes if node.op == "call_function"])
    other = choice.choice([node for node in program.graph.nodes if node.op == "call_function"])
    node.meta[KEY] = other.meta[KEY]


def _insert(program: Program, choice: random.Random) -> None:
    node = choice.choice([node for node in program.graph.nodes if node.op == "call_function"])
    with program.graph.inserting_after(node):
        new = program.call(choice.choice([aten.abs.default, aten.t.default]), (node,), like=node)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _verdict(check: Callable[[], None]) -> bool:
    try:
        check()
    except VerificationError:
        return False
    return True


def test_incremental_verification_finds_what_full_verification_finds() -> None:
    verified = net()
    edits = (_swap_target, _resize, _rewire, _relabel, _insert)
    verdicts = []
    for seed in range(60):
        choice = random.Random(seed)
        program = verified.copy()
        with suppress(VerificationError):  # an operator that `program.call` refuses is left out
            for _ in range(choice.randint(1, 3)):
                choice.choice(edits)(program, choice)
        full = _verdict(lambda p=program: check_shapes(p, p.graph.nodes))  # type: ignore[misc]
        assert _verdict(lambda p=program: check_shapes(p, changed_nodes(verified, p))) is full, f"seed {seed}"  # type: ignore[misc]
        verdicts.append(full)
    assert {True, False} == set(verdicts)


def test_nothing_is_checked_again_where_nothing_changed() -> None:
    program = net()
    assert changed_nodes(program, program.copy()) == []
    copy = program.copy()
    node_of(copy, aten.relu.default).target = aten.abs.default
    assert [node.name for node in changed_nodes(program, copy)] == ["relu"]
    verify(copy)
