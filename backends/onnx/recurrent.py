"""Rules for recurrent networks: an LSTM, GRU or RNN of ONNX a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .builder import Builder, Value
from .dtypes import tensor_proto
from .registry import Refusal, add_rule

aten = torch.ops.aten


@dataclass(frozen=True)
class _Kind:
    """operator: ONNX's. order: PyTorch's place of each gate of ONNX's. attributes: what ONNX leaves open."""

    operator: str
    order: tuple[int, ...]
    attributes: dict[str, Any]


_KINDS = {
    aten.lstm.input: _Kind("LSTM", (0, 3, 1, 2), {}),
    aten.gru.input: _Kind("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    aten.rnn_tanh.input: _Kind("RNN", (0,), {}),
    aten.rnn_relu.input: _Kind("RNN", (0,), {"activations": ["Relu"]}),
}


def _rule(kind: _Kind) -> Callable[..., tuple[str, ...]]:
    def emit(
        b: Builder,
        x: Value,
        states: Value | Sequence[Value],
        weights: Sequence[Value],
        biased: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[str, ...]:
        """The outputs of the last layer, and the last states of all layers."""
        if train and dropout > 0 and layers > 1:
            raise Refusal("dropout between layers is in training mode", "program.eval()")
        ways = 2 if bidirectional else 1
        tensors = _parameters(b, layers * ways, 4 if biased else 2)
        given: list[Any] = list(states) if isinstance(states, list | tuple) else [states]
        source: str = b.op("Transpose", x, perm=[1, 0, 2]) if batch_first else x
        finals: list[list[str]] = [[] for _ in given]
        for layer in range(layers):
            first = [state if layers == 1 else _rows(b, state, layer * ways, ways) for state in given]
            own = [_stored(b, kind, layer, tensors[layer * ways : (layer + 1) * ways], place) for place in range(3)]
            source, *last = _layer(b, kind, source, own, first, ways, tensors[0][1].shape[1])
            for found, value in zip(finals, last, strict=True):
                found.append(value)
        y = b.op("Transpose", source, perm=[1, 0, 2]) if batch_first else source
        return y, *(found[0] if layers == 1 else b.op("Concat", *found, axis=0) for found in finals)

    return emit


def _parameters(b: Builder, count: int, each: int) -> list[list[Tensor]]:
    """Weights and biases of each direction of each layer."""
    nodes: Any = b.node.args[2]
    found = [b.program.constant(node) for node in nodes]
    if len(found) != count * each:
        raise Refusal("projects its states", "proj_size=0")
    tensors = [tensor for tensor in found if tensor is not None]
    if len(tensors) != len(found):
        raise Refusal("computes with weights that are computed", "fold constants before lowering")
    return [tensors[start : start + each] for start in range(0, len(tensors), each)]


def _stored(b: Builder, kind: _Kind, layer: int, directions: list[list[Tensor]], place: int) -> str | None:
    """The input's weights, the state's or both biases, of all directions of a layer; None for biases that are not."""
    if place == 2 and len(directions[0]) == 2:
        return None
    rows = [_gates(kind, d[place]) if place < 2 else torch.cat([_gates(kind, t) for t in d[2:]]) for d in directions]
    stacked = nn.Parameter(torch.stack(rows))
    name = f"{b.node.name}.layer{layer}.{('weight', 'recurrent', 'bias')[place]}"
    return b.initializer(name, lambda stored: tensor_proto(stored, stacked))


def _gates(kind: _Kind, tensor: Tensor) -> Tensor:
    parts = tensor.detach().chunk(len(kind.order))
    return torch.cat([parts[place] for place in kind.order])


def _layer(
    b: Builder, kind: _Kind, x: str, own: list[str | None], states: list[str], ways: int, hidden: int
) -> list[str]:
    """Outputs [steps, batch, directions * hidden] and the last states."""
    attributes: dict[str, Any] = {**kind.attributes, "hidden_size": hidden}
    if ways > 1:
        attributes["direction"] = "bidirectional"
        if "activations" in attributes:
            attributes["activations"] = attributes["activations"] * ways
    y, *last = b.op_many(kind.operator, 1 + len(states), x, *own, None, *states, **attributes)
    if ways == 1:
        return [b.op("Squeeze", y, b.ints(1)), *last]
    turned = b.op("Transpose", y, perm=[0, 2, 1, 3])
    return [b.op("Reshape", turned, b.ints(0, 0, -1)), *last]


def _rows(b: Builder, state: str, start: int, count: int) -> str:
    return b.op("Slice", state, b.ints(start), b.ints(start + count), b.ints(0))


for _target, _kind in _KINDS.items():
    add_rule(_target, _rule(_kind))
