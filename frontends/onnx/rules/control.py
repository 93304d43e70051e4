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
        op.refuse(
            "the loop stops at a time that depends on data",
            expected="a number of turns that is known",
            hint="export the model anew with a fixed number of turns, or cut it before and after the loop",
        )
    return bool(known.tensor.item())


def _stacked(op: Call, values: tuple[Value, ...]) -> Value:
    return op.call(aten.stack.default, list(values))


@rule("Scan", since=9)
def scan(op: Call) -> list[Value]:
    """Unrolled: a turn for each item along the axes that are scanned, forwards or backwards."""
    count = op.attr_int("num_scan_inputs")
    split = len(op.proto.input) - count
    if split < 0 or count < 1:
        op.refuse("there are fewer inputs than are scanned", expected=f"at least {count}", found=len(op.proto.input))
    state, scanned = op.inputs[:split], op.inputs[split:]
    axes = [
        op.axis(axis, op.rank(x)) for axis, x in zip(op.attr_ints("scan_input_axes", [0] * count), scanned, strict=True)
    ]
    backwards = op.attr_ints("scan_input_directions", [0] * count)
    lengths = {op.static_size(x, axis) for x, axis in zip(scanned, axes, strict=True)}
    if len(lengths) != 1 or 0 in lengths or len(backwards) != count:
        op.refuse("the inputs that are scanned differ in length", expected="one length above 0", found=sorted(lengths))
    collected: list[list[Value]] = []
    for turn in range(length := lengths.pop()):
        places = [length - 1 - turn if back else turn for back in backwards]
        items = [op.call(aten.select.int, *item) for item in zip(scanned, axes, places, strict=True)]
        results = op.run_graph("body", [*state, *items])
        state, given = results[:split], results[split:]
        collected.append(given)
    return [*state, *_scanned(op, collected)]


def _scanned(op: Call, collected: list[list[Value]]) -> list[Value]:
    """What the turns gave, each stacked along its axis, in the order of its direction."""
    count = len(collected[0])
    axes, backwards = op.attr_ints("scan_output_axes", [0] * count), op.attr_ints("scan_output_directions", [0] * count)
    if len(axes) != count or len(backwards) != count:
        op.refuse("there is not an axis and a direction for each output", expected=count, found=[axes, backwards])
    columns = zip(zip(*collected, strict=True), axes, backwards, strict=True)
    return [op.call(aten.stack.default, list(values)[:: -1 if back else 1], axis) for values, axis, back in columns]
