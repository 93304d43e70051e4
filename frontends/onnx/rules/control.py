"""Rules for control flow, where it can be resolved at import."""

from __future__ import annotations

import torch

from ..call import Call
from ..registry import rule
from ..values import Known, Value

aten = torch.ops.aten


@rule("If")
def if_(op: Call) -> list[Value]:
    """The branch that is taken."""
    return op.run_graph("then_branch" if bool(op.known(0).item()) else "else_branch")


@rule("Loop")
def loop(op: Call) -> list[Value]:
    """Unrolled: how often it turns is known. What each turn gives besides its state is stacked."""
    limit = int(op.known(0).item()) if op.has(0) else None
    going = bool(op.known(1).item()) if op.has(1) else True
    state = [op.input(index) for index in range(2, len(op.proto.input))]
    collected: list[list[Value]] = []
    turn = 0
    while going and (limit is None or turn < limit):
        results = op.run_graph("body", [Known(torch.tensor(turn)), Known(torch.tensor(True)), *state])
        going = _goes_on(op, results[0])
        collected.append(results[1 + len(state) :])
        state, turn = results[1 : 1 + len(state)], turn + 1
    if not collected and len(op.proto.output) > len(state):
        op.refuse("a loop that never turns gives no values to stack", found="0 turns")
    return [*state, *[_stacked(op, values) for values in zip(*collected, strict=True)]]


def _goes_on(op: Call, condition: Value) -> bool:
    known = op.importer.known(condition)
    if known is None:
        op.refuse("the loop stops at a time that depends on data", expected="a number of turns that is known")
    return bool(known.tensor.item())


def _stacked(op: Call, values: tuple[Value, ...]) -> Value:
    return op.call(aten.stack.default, list(values))
