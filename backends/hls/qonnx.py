"""`model.qonnx.onnx`: the program in the dialect that FINN and hls4ml read.

Quant nodes stand for grids (arXiv:2206.07527). Every tensor between them holds integers: weights are integers on a
grid of scale 1, accumulators are sums of integers, and a requantization is a product with the multipliers, rounded by
a Quant node of scale 1. So nothing is left to the order in which floats are added, and the model gives the bits of the
integer stage as long as its accumulators stay below 2**24, which `inexact_nodes` tells.

Values travel as q - zero_point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import fx

from tersor.ir import integer_operators as ops
from tersor.ir.accumulators import accumulator_range, is_accumulator
from tersor.ir.program import Program
from tersor.ir.proofs import Requantization
from tersor.ir.shapes import KEY

from .build import MOVES
from .qonnx_moves import move, shape_of, source_of
from .qonnx_nodes import DOMAIN, Floats, Nodes, QuantType
from .requantizer import signed_bits
from .rules import sum_of

aten = torch.ops.aten

_OPSET = 17
_IR_VERSION = 8
_FLOAT32_EXACT = 1 << 24
_MEAN_EXACT = 1 << 21
"""Sums below this come back from a mean in float32 times its number with an error well below a half."""
_ANYWHERE = (-math.inf, math.inf)
_INDEX = 128
"""What is added to an int8 to look it up."""


def qonnx_model(program: Program) -> onnx.ModelProto:
    """The model of a program of the integer stage that the target takes."""
    writer = _Writer(program=program)
    for node in program.graph.nodes:
        if node.op == "call_function":
            writer.visit(node)
    names = program.signature.output_names
    for name, node in zip(names, program.outputs, strict=True):
        writer.rename(writer.value(node, None), name)
    inputs = [_info(node.name, node) for node in program.placeholders]
    outputs = [_info(name, node) for name, node in zip(names, program.outputs, strict=True)]
    graph = helper.make_graph(writer.nodes, program.name, inputs, outputs, writer.initializers)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="tersor", producer_version=version("tersor")
    )


def inexact_nodes(program: Program) -> list[str]:
    """Nodes whose accumulators may pass 2**24, where float32 does not hold them: what runs QONNX may round there."""
    reaches = {node.name: accumulator_range(program, node) for node in program.graph.nodes if is_accumulator(node)}
    return [name for name, reach in reaches.items() if reach and reach.worst_partial_sum >= _FLOAT32_EXACT]


def _info(name: str, node: fx.Node) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [int(size) for size in node.meta[KEY].shape])


@dataclass
class _Writer(Nodes):
    """Writes nodes. `values`: of a program's node, the tensor and the zero point that has been taken off."""

    program: Program = field(kw_only=True)
    values: dict[fx.Node, tuple[str, int]] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        """Write one node. support.py: every one has a rule."""
        if node.target not in MOVES:
            self.values[node] = _RULES[node.target](self, node)
        elif not isinstance(node.meta[KEY], list | tuple):  # what is split is written part by part
            name, zero_point = self.values[source_of(node)]
            self.values[node] = move(self, self.program, node, name, zero_point), zero_point

    def value(self, node: object, zero_point: int | None) -> str:
        """The tensor of a node with that zero point taken off; None for one that has none."""
        assert isinstance(node, fx.Node)
        if node.op == "placeholder":
            return node.name
        if node not in self.values:  # a tensor of the program
            values = self.constant(node)
            assert values is not None
            return self.tensor((values.astype(np.int64) - (zero_point or 0)).astype(np.float32))
        name, own = self.values[node]
        return name if zero_point is None else self.plus(name, own - zero_point)

    def weight(self, argument: object, values: Floats) -> str:
        """Integer weights behind a Quant node, under their name in the program."""
        own = str(argument.target) if isinstance(argument, fx.Node) else None
        taken = {tensor.name for tensor in self.initializers}
        name = self.tensor(values.astype(np.float32), None if own in taken else own)
        ends = int(values.min(initial=0)), int(values.max(initial=0))
        return self.quant(name, QuantType(signed_bits(*ends), True))

    def constant(self, argument: object) -> Floats | None:
        """The numbers of a tensor of the program."""
        tensor = self.program.constant(argument)
        return None if tensor is None else tensor.detach().numpy()


def _integers(*values: Any) -> list[int]:
    return [int(value) for value in values]


def _quantize(w: _Writer, node: fx.Node) -> tuple[str, int]:
    source, scale, zero_point, low, high = node.args
    step = w.constant(scale)
    assert step is not None
    zero, least, most = _integers(zero_point, low, high)
    steps = w.value(source, None)
    return w.onto_grid(steps, least - zero, most - zero, _ANYWHERE, float(step.reshape(-1)[0])), zero


def _dequantize(w: _Writer, node: fx.Node) -> tuple[str, int]:
    q, scale, zero_point, axis = node.args
    step = w.constant(scale)
    assert step is not None
    if axis is not None:
        (along,) = _integers(axis)
        step = step.reshape([-1] + [1] * (node.meta[KEY].dim() - 1 - along))
    (zero,) = _integers(zero_point)
    return w.emit("Mul", [w.value(q, zero), w.tensor(step.astype(np.float32))]), 0


def _requantize(w: _Writer, node: fx.Node) -> tuple[str, int]:
    acc, multiplier, zero_point, low, high = node.args
    factors = w.constant(multiplier)
    assert factors is not None
    steps = w.emit("Mul", [w.value(acc, 0), w.tensor(factors.astype(np.float32))])
    case = Requantization.of(w.program, node)
    ends = [(end.float() * case.multiplier).round() for end in (case.low, case.high)]
    (zero, least, most), reach = _integers(zero_point, low, high), (float(ends[0].min()), float(ends[1].max()))
    return w.onto_grid(steps, least - zero, most - zero, reach), zero


def _conv(w: _Writer, node: fx.Node) -> tuple[str, int]:
    x, weight, bias, zero_point, stride, padding, dilation, groups = node.args
    filters, added = w.constant(weight), w.constant(bias)
    assert filters is not None
    inputs = [w.value(x, *_integers(zero_point)), w.weight(weight, filters)]
    inputs += [] if added is None else [w.tensor(added.astype(np.float32))]
    pads, steps, spread = (_integers(*values) for values in (padding, stride, dilation))  # type: ignore[misc]
    (group,) = _integers(groups)
    kernel = [int(size) for size in filters.shape[2:]]
    return (
        w.emit("Conv", inputs, kernel_shape=kernel, pads=pads * 2, strides=steps, dilations=spread, group=group),
        0,
    )


def _linear(w: _Writer, node: fx.Node) -> tuple[str, int]:
    x, weight, bias, zero_point = node.args
    matrix, added = w.constant(weight), w.constant(bias)
    assert matrix is not None
    product = w.emit("MatMul", [w.value(x, *_integers(zero_point)), w.weight(weight, matrix.T)])
    return (product if added is None else w.emit("Add", [product, w.tensor(added.astype(np.float32))])), 0


def _max_pool(w: _Writer, node: fx.Node) -> tuple[str, int]:
    x, kernel, stride, padding, dilation, ceil_mode = node.args
    assert isinstance(x, fx.Node)
    name, zero_point = w.values[x]
    window, steps, pads, spread = (_integers(*values) for values in (kernel, stride, padding, dilation))  # type: ignore[misc]
    options: dict[str, Any] = {"kernel_shape": window, "strides": steps, "pads": pads * 2, "dilations": spread}
    return w.emit("MaxPool", [name], ceil_mode=int(bool(ceil_mode)), **options), zero_point


def _sum_pool(w: _Writer, node: fx.Node) -> tuple[str, int]:
    """A sum over windows is a depthwise convolution with ones."""
    x, zero_point, kernel, stride, padding, _ = node.args
    assert isinstance(x, fx.Node)
    window, steps, before = (_integers(*values) for values in (kernel, stride, padding))  # type: ignore[misc]
    channels, sizes, out = x.meta[KEY].shape[1], x.meta[KEY].shape[2:], node.meta[KEY].shape[2:]
    after = [
        max(0, (int(count) - 1) * step + length - int(size) - pad)
        for count, step, length, size, pad in zip(out, steps, window, sizes, before, strict=True)
    ]
    ones = w.weight(None, np.ones((int(channels), 1, *window)))
    options: dict[str, Any] = {"kernel_shape": window, "strides": steps, "dilations": [1] * len(window)}
    return w.emit(
        "Conv", [w.value(x, *_integers(zero_point)), ones], group=int(channels), pads=[*before, *after], **options
    ), 0


def _sum(w: _Writer, node: fx.Node) -> tuple[str, int]:
    """A sum over all pixels is their mean times their number, rounded to the integer that it is."""
    x, dims, keepdim, zero_point = node.args
    shape, value = shape_of(x), w.value(x, *_integers(zero_point))
    summed = sorted(dim % len(shape) for dim in _integers(*dims))  # type: ignore[misc]  # a list, by its schema
    reach = accumulator_range(w.program, node)
    assert reach is not None
    count, most = math.prod(shape[dim] for dim in summed), reach.worst_partial_sum
    if len(shape) not in (3, 4) or summed != list(range(2, len(shape))) or most >= _MEAN_EXACT:
        return w.emit("ReduceSum", [value, w.integers(*summed)], keepdims=int(bool(keepdim))), 0
    mean = w.emit("GlobalAveragePool", [value])
    total = w.quant(w.emit("Mul", [mean, w.number(count)]), QuantType.holding(-most, most))
    return (total if keepdim else w.reshape(total, shape[:2])), 0


def _add(w: _Writer, node: fx.Node) -> tuple[str, int]:
    """By integers where the sum is proven to be one of two products and a shift; else as the definition has it."""
    a, b, scale_a, zero_a, scale_b, zero_b, scale, zero_point, low, high = node.args
    zero, least, most = _integers(zero_point, low, high)
    pair = sum_of(w.program, node)
    if pair.table is None and not pair.exceptions and pair.largest < _FLOAT32_EXACT:
        sides = [
            w.emit("Mul", [w.value(side, 0), w.number(multiplier)])
            for side, multiplier in ((a, pair.multiplier_a), (b, pair.multiplier_b))
        ]
        half = (1 << pair.shift >> 1) if pair.even else 0  # which rounding half to even adds itself
        total = w.plus(w.emit("Add", sides), pair.offset - half)
        steps, mode = w.emit("Mul", [total, w.number(2.0**-pair.shift)]), "ROUND" if pair.even else "FLOOR"
        return w.onto_grid(steps, least - zero, most - zero, _ANYWHERE, mode=mode), zero
    sides = [
        w.emit("Mul", [w.value(side, *_integers(zero)), w.number(step)])  # type: ignore[arg-type]  # floats
        for side, step, zero in ((a, scale_a, zero_a), (b, scale_b, zero_b))
    ]
    steps = w.emit("Div", [w.emit("Add", sides), w.number(scale)])  # type: ignore[arg-type]  # a float
    return w.onto_grid(steps, least - zero, most - zero, _ANYWHERE), zero


def _mul(w: _Writer, node: fx.Node) -> tuple[str, int]:
    a, b, zero_a, zero_b = node.args
    sides = [w.value(side, *_integers(zero)) for side, zero in ((a, zero_a), (b, zero_b))]
    return w.emit("Mul", sides), 0


def _lookup(w: _Writer, node: fx.Node) -> tuple[str, int]:
    table = w.constant(node.args[1])
    assert table is not None
    index = w.emit("Cast", [w.value(node.args[0], -_INDEX)], to=TensorProto.INT64)
    return w.emit("Gather", [w.tensor(table.astype(np.float32)), index], axis=0), 0


def _cat(w: _Writer, node: fx.Node) -> tuple[str, int]:
    sources = list(node.args[0])  # type: ignore[arg-type]  # a list, by its schema
    (axis,) = _integers(node.args[1] if len(node.args) > 1 else 0)
    return w.emit("Concat", [w.value(source, 0) for source in sources], axis=axis), 0


_RULES: dict[object, Callable[[_Writer, fx.Node], tuple[str, int]]] = {
    ops.QUANTIZE: _quantize,
    ops.DEQUANTIZE: _dequantize,
    ops.REQUANTIZE: _requantize,
    ops.INT_CONV: _conv,
    ops.INT_LINEAR: _linear,
    ops.INT_MAX_POOL: _max_pool,
    ops.INT_SUM_POOL: _sum_pool,
    ops.INT_SUM: _sum,
    ops.INT_ADD: _add,
    ops.INT_MUL: _mul,
    ops.INT_LOOKUP: _lookup,
    aten.cat.default: _cat,
}
