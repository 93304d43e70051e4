"""Rules for recurrent networks: PyTorch's own operator where it computes the same, else one step after another.

PyTorch's LSTM, GRU and RNN have the usual activations, no peepholes and no clipping, and their GRU applies the reset
gate after the product. Anything else is unrolled, where the number of steps is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..call import Call
from ..registry import Function, add_rule
from ..values import Known, Value

aten = torch.ops.aten

_LONGEST = 256
"""Steps that are unrolled at most."""

_ACTIVATIONS: dict[str, Any] = {
    "sigmoid": aten.sigmoid.default,
    "tanh": aten.tanh.default,
    "relu": aten.relu.default,
    "softplus": aten.softplus.default,
}


@dataclass(frozen=True)
class _Kind:
    """A recurrent operator.

    order: ONNX's place of each gate of PyTorch's. activations: the default ones of a direction. state: how many
    tensors a step hands on. step: one step, for what PyTorch's operator does not take.
    """

    order: tuple[int, ...]
    activations: tuple[str, ...]
    state: int
    step: Callable[[_Direction, Value, list[Value]], list[Value]]
    peepholes: int | None = None


@dataclass(frozen=True)
class _Direction:
    """What one direction computes with: weights [gates * hidden, ...] in ONNX's order, and how."""

    op: Call
    weight: Value
    recurrent: Value
    bias: Value | None
    recurrent_bias: Value | None
    peepholes: Value | None
    activations: list[str]
    hidden: int
    backwards: bool

    def gate(self, value: Value | None, index: int, axis: int = 0) -> Value | None:
        """The part of one gate."""
        if value is None:
            return None
        start, end = index * self.hidden, (index + 1) * self.hidden
        if isinstance(value, Known):  # the same tensor at every step
            key = "gate", value, index
            found: Value = self.op.importer.once(key, lambda: self.op.call(aten.slice.Tensor, value, axis, start, end))
            return found
        return self.op.call(aten.slice.Tensor, value, axis, start, end)

    def linear(self, x: Value, weight: Value, bias: Value | None) -> Value:
        return self.op.call(aten.linear.default, x, weight, bias)

    def add(self, left: Value, right: Value) -> Value:
        return self.op.call(aten.add.Tensor, left, right)

    def mul(self, left: Value, right: Value) -> Value:
        return self.op.call(aten.mul.Tensor, left, right)

    def activate(self, index: int, value: Value, *, clipped: bool = True) -> Value:
        """An activation of what is clipped before it, where clipping is asked for."""
        if clipped and self.op.has_attr("clip"):
            limit = self.op.attr_float("clip")
            value = self.op.call(aten.clamp.default, value, -limit, limit)
        return self.op.call(_ACTIVATIONS[self.activations[index]], value)

    def watched(self, value: Value, index: int, cell: Value) -> Value:
        """A gate that also sees the cell, through a peephole."""
        peephole = self.gate(self.peepholes, index)
        return value if peephole is None else self.add(value, self.mul(peephole, cell))


@dataclass(frozen=True)
class _Layer:
    """A recurrent node over x [steps, batch, features].

    states: what each begins with, [directions, batch, hidden]. lengths: [batch]; None where all samples have all steps.
    """

    op: Call
    kind: _Kind
    x: Value
    states: list[Value]
    directions: list[_Direction]
    lengths: Value | None


# -- Steps -------------------------------------------------------------------------------------------------------------


def _sums(d: _Direction, x: Value, hidden: Value, gates: int) -> list[Value]:
    """Input and state through their weights, a tensor a gate."""
    total = d.add(d.linear(x, d.weight, d.bias), d.linear(hidden, d.recurrent, d.recurrent_bias))
    return [d.gate(total, index, -1) for index in range(gates)]  # type: ignore[misc]  # none is None


def _rnn_step(d: _Direction, x: Value, state: list[Value]) -> list[Value]:
    return [d.activate(0, _sums(d, x, state[0], 1)[0])]


def _lstm_step(d: _Direction, x: Value, state: list[Value]) -> list[Value]:
    """Gates in the order input, output, forget, cell. Gates are clipped, the cell is not: so ONNX Runtime reads it."""
    hidden, cell = state
    enter, leave, forget, new = _sums(d, x, hidden, 4)
    enter = d.activate(0, d.watched(enter, 0, cell))
    if d.op.attr_int("input_forget", 0):
        forget = d.op.call(aten.rsub.Scalar, enter, 1.0)
    else:
        forget = d.activate(0, d.watched(forget, 2, cell))
    cell = d.add(d.mul(forget, cell), d.mul(enter, d.activate(1, new)))
    leave = d.activate(0, d.watched(leave, 1, cell))
    return [d.mul(leave, d.activate(2, cell, clipped=False)), cell]


def _gru_step(d: _Direction, x: Value, state: list[Value]) -> list[Value]:
    """Gates in the order update, reset, hidden; the reset gate before or after the product with the state."""
    (hidden,) = state
    new_input = d.linear(x, d.weight, d.bias)
    update, reset = (
        d.activate(
            0,
            d.add(
                d.gate(new_input, index, -1),  # type: ignore[arg-type]  # not None
                d.linear(hidden, d.gate(d.recurrent, index), d.gate(d.recurrent_bias, index)),  # type: ignore[arg-type]
            ),
        )
        for index in (0, 1)
    )
    weight, bias = d.gate(d.recurrent, 2), d.gate(d.recurrent_bias, 2)
    assert weight is not None, "part of a weight"
    if d.op.attr_int("linear_before_reset", 0):
        product = d.mul(reset, d.linear(hidden, weight, bias))
    else:
        product = d.linear(d.mul(reset, hidden), weight, bias)
    new = d.activate(1, d.add(d.gate(new_input, 2, -1), product))  # type: ignore[arg-type]  # not None
    rest = d.op.call(aten.rsub.Scalar, update, 1.0)
    return [d.add(d.mul(rest, new), d.mul(update, hidden))]


_KINDS = {
    "RNN": _Kind((0,), ("tanh",), 1, _rnn_step),
    "GRU": _Kind((1, 0, 2), ("sigmoid", "tanh"), 1, _gru_step),
    "LSTM": _Kind((0, 2, 3, 1), ("sigmoid", "tanh", "tanh"), 2, _lstm_step, peepholes=7),
}
_WHOLE = {
    ("RNN", "tanh"): aten.rnn_tanh.input,
    ("RNN", "relu"): aten.rnn_relu.input,
    ("GRU", "sigmoid"): aten.gru.input,
    ("LSTM", "sigmoid"): aten.lstm.input,
}
"""Operator and first activation -> PyTorch's."""


# -- The operators -----------------------------------------------------------------------------------------------------


def _recurrent(kind: _Kind) -> Function:
    def rule(op: Call) -> list[Value]:
        """Every step's output [steps, directions, batch, hidden], and the state after the last."""
        first = bool(op.attr_int("layout", 0))
        layer = _layer(op, kind, first)
        y, finals = _by_torch(layer) if _is_usual(layer) else _unrolled(layer)
        if first:
            y = op.call(aten.permute.default, y, [2, 0, 1, 3])
            finals = [op.call(aten.permute.default, final, [1, 0, 2]) for final in finals]
        return [y, *finals]

    return rule


def _layer(op: Call, kind: _Kind, first: bool) -> _Layer:
    """What a node says. first: its tensors have the batch in front."""
    x = op.call(aten.permute.default, op.input(0), [1, 0, 2]) if first else op.input(0)
    ways = _ways(op)
    states = [_state(op, x, 5 + index, len(ways), first) for index in range(kind.state)]
    names = _activations(op, kind, len(ways))
    directions = [_direction(op, kind, index, names[index], backwards) for index, backwards in enumerate(ways)]
    return _Layer(op, kind, x, states, directions, _lengths(op, x))


def _ways(op: Call) -> list[bool]:
    """Whether each direction runs backwards."""
    found = op.attr_str("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    if found not in ways:
        op.refuse("the direction is not known", expected=", ".join(ways), found=found)
    return ways[found]


def _activations(op: Call, kind: _Kind, directions: int) -> list[list[str]]:
    count = len(kind.activations)
    given = [name.lower() for name in op.attr_strs("activations", list(kind.activations) * directions)]
    if len(given) != count * directions or not all(name in _ACTIVATIONS for name in given):
        wanted = f"{count} a direction of {', '.join(_ACTIVATIONS)}"
        op.refuse("the activations are not taken", expected=wanted, found=given)
    if op.has_attr("activation_alpha") or op.has_attr("activation_beta"):
        op.refuse("activations with numbers of their own are not taken", expected="no activation_alpha or _beta")
    return [given[index * count : (index + 1) * count] for index in range(directions)]


def _state(op: Call, x: Value, index: int, directions: int, first: bool) -> Value:
    """The initial state [directions, batch, hidden]; zeros where it is not given."""
    given = op.optional(index)
    if given is not None:
        return op.call(aten.permute.default, given, [1, 0, 2]) if first else given
    sizes = [directions, op.size(x, 1), op.size(op.input(2), 2)]
    return op.call(aten.full.default, sizes, 0.0, dtype=op.dtype(x))


def _direction(op: Call, kind: _Kind, index: int, activations: list[str], backwards: bool) -> _Direction:
    hidden = op.static_shape(op.input(2))[2]
    gates = len(kind.order) * hidden
    weight, recurrent = (_of(op, place, index) for place in (1, 2))
    biases: list[Value | None] = [None, None]
    if op.has(3):
        both = _of(op, 3, index)
        biases = [op.call(aten.slice.Tensor, both, 0, start, start + gates) for start in (0, gates)]
    peepholes = None if kind.peepholes is None or not op.has(kind.peepholes) else _of(op, kind.peepholes, index)
    return _Direction(op, weight, recurrent, biases[0], biases[1], peepholes, activations, hidden, backwards)


def _of(op: Call, place: int, direction: int) -> Value:
    value = op.input(place)
    part = op.call(aten.select.int, value, 0, direction)
    if isinstance(value, Known) and isinstance(part, Known):
        return replace(part, name=f"{value.name}_{direction}")
    return part


def _lengths(op: Call, x: Value) -> Value | None:
    """How many steps each sample has; None where all have all."""
    given = op.optional(4)
    known = None if given is None else op.importer.known(given)
    if known is not None and op.size(x, 0) == int(known.tensor.min()):
        return None
    return given


def _is_usual(layer: _Layer) -> bool:
    """Whether PyTorch's operator computes this."""
    op, kind, operator = layer.op, layer.kind, layer.op.proto.op_type
    names = [d.activations for d in layer.directions]
    usual = names[0] if operator == "RNN" else list(kind.activations)
    peepholes = kind.peepholes is not None and op.has(kind.peepholes)
    return (
        layer.lengths is None
        and all(given == usual for given in names)
        and (operator, names[0][0]) in _WHOLE
        and not (op.has_attr("clip") or peepholes or op.attr_int("input_forget", 0))
        and (operator != "GRU" or bool(op.attr_int("linear_before_reset", 0)))
    )


def _by_torch(layer: _Layer) -> tuple[Value, list[Value]]:
    """PyTorch knows forwards and both ways; backwards alone is forwards through the steps turned round."""
    op, x, states, directions = layer.op, layer.x, layer.states, layer.directions
    count, head = len(directions), directions[0]
    turned = count == 1 and head.backwards
    parameters: list[Value] = []
    for d in directions:
        values = (d.weight, d.recurrent, d.bias, d.recurrent_bias)
        parameters += [_reordered(op, layer.kind, value, d.hidden) for value in values if value is not None]
    source = op.call(aten.flip.default, x, [0]) if turned else x
    target = _WHOLE[op.proto.op_type, head.activations[0]]
    state: Any = states if len(states) > 1 else states[0]
    biased = head.bias is not None
    found, *finals = op.call_several(target, source, state, parameters, biased, 1, 0.0, False, count > 1, False)
    found = op.call(aten.flip.default, found, [0]) if turned else found
    sizes = [op.size(x, 0), op.size(x, 1), count, head.hidden]
    return op.call(aten.permute.default, op.call(aten.reshape.default, found, sizes), [0, 2, 1, 3]), finals


def _reordered(op: Call, kind: _Kind, value: Value, hidden: int) -> Value:
    """The gates in PyTorch's order."""
    if kind.order == (0,):
        return value
    parts = [op.call(aten.slice.Tensor, value, 0, gate * hidden, (gate + 1) * hidden) for gate in kind.order]
    joined = op.call(aten.cat.default, parts, 0)
    return replace(joined, name=value.name) if isinstance(joined, Known) and isinstance(value, Known) else joined


def _unrolled(layer: _Layer) -> tuple[Value, list[Value]]:
    """One step after another, direction by direction."""
    op, directions = layer.op, layer.directions
    steps = op.size(layer.x, 0)
    if not isinstance(steps, int) or steps > _LONGEST or not steps:
        op.refuse(
            "PyTorch's operator does not compute this, and the steps are too many to unroll or not known",
            expected=f"1 to {_LONGEST} steps, or the usual activations without clip, peepholes or reset before",
            found=f"{steps} steps",
        )
    if layer.lengths is not None and any(d.backwards for d in directions):
        op.refuse("samples of several lengths backwards are not taken", expected="direction forward")
    inputs = [op.call(aten.select.int, layer.x, 0, step) for step in range(steps)]
    outputs, finals = [], []
    for index, d in enumerate(directions):
        state = [op.call(aten.select.int, value, 0, index) for value in layer.states]
        found, state = _stepped(layer, d, inputs, state)
        outputs.append(op.call(aten.stack.default, found, 0))
        finals.append(state)
    last = [op.call(aten.stack.default, list(values), 0) for values in zip(*finals, strict=True)]
    return op.call(aten.stack.default, outputs, 1), last


def _stepped(layer: _Layer, d: _Direction, inputs: list[Value], state: list[Value]) -> tuple[list[Value], list[Value]]:
    """What each step of a direction shows, in the order of the inputs, and the state after its last."""
    shown: dict[int, Value] = {}
    for step in range(len(inputs))[:: -1 if d.backwards else 1]:
        new = layer.kind.step(d, inputs[step], state)
        if layer.lengths is None:
            state, shown[step] = new, new[0]
        else:
            state, shown[step] = _until(layer.op, layer.lengths, step, state, new)
    return [shown[step] for step in range(len(inputs))], state


def _until(op: Call, lengths: Value, step: int, old: list[Value], new: list[Value]) -> tuple[list[Value], Value]:
    """Samples that are over keep their state and show zeros."""
    going = op.call(aten.unsqueeze.default, op.call(aten.gt.Scalar, lengths, step), 1)
    state = [op.call(aten.where.self, going, after, before) for before, after in zip(old, new, strict=True)]
    return state, op.call(aten.where.ScalarOther, going, new[0], 0.0)


for _name, _kind in _KINDS.items():
    add_rule(_name, _recurrent(_kind), since=7)
