"""The QONNX model, executed by the qonnx package, against the integer stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from tersor.backends.hls.qonnx import inexact_nodes, qonnx_model
from tersor.backends.hls.qonnx_nodes import Nodes
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, INT8_SYMMETRIC, Scheme

from .architectures import ARCHITECTURES
from .models import DsCnn, Mixed, ResNet, jet_tagger, quantized, sequence, streamlined

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Scheme]] = {
    "jet tagger": (jet_tagger, (1, 16), INT8),
    "residuals": (lambda: ResNet(4), (1, 3, 12, 12), INT8),
    "depthwise of 4 bits": (lambda: DsCnn(6, 1), (1, 1, 49, 10), INT4),
    "all the rest": (Mixed, (1, 3, 16, 12), INT8),
    "sequence": (sequence, (1, 3, 16), INT8),
    "symmetric": (jet_tagger, (1, 16), INT8_SYMMETRIC),
    **{name: (*ARCHITECTURES[name], INT8) for name in ("resized", "excited", "moved")},
}


def executed(program: Program, frames: list[torch.Tensor]) -> list[list[Any]]:
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = ModelWrapper(qonnx_model(program)).transform(InferShapes())
    name = model.graph.input[0].name
    return [list(execute_onnx(model, {name: frame.numpy()}).values()) for frame in frames]


@pytest.mark.parametrize("name", MODELS)
def test_no_bit_differs(name: str) -> None:
    make, shape, scheme = MODELS[name]
    torch.manual_seed(7)
    program = streamlined(quantized(make(), shape, scheme))
    assert inexact_nodes(program) == []
    frames = [torch.randn(shape), torch.randn(shape) * 30, torch.full(shape, -1e4)]
    for frame, found in zip(frames, executed(program, frames), strict=True):
        for expected, output in zip(program.run([frame]), found, strict=True):
            np.testing.assert_array_equal(output, expected.numpy())


READ = frozenset(
    [
        "Quant",
        "Conv",
        "MatMul",
        "Add",
        "Mul",
        "Div",
        "Transpose",
        "Reshape",
        "MaxPool",
        "GlobalAveragePool",
        "Concat",
        "Identity",
    ]
)
"""Operators that both FINN and hls4ml have."""


@pytest.mark.parametrize("name", ["jet tagger", "residuals", "depthwise of 4 bits"])
def test_operators_are_those_that_readers_have(name: str) -> None:
    make, shape, scheme = MODELS[name]
    torch.manual_seed(7)
    model = qonnx_model(streamlined(quantized(make(), shape, scheme)))
    assert {node.op_type for node in model.graph.node} <= READ


def test_it_is_in_the_dialect() -> None:
    model = qonnx_model(streamlined(quantized(jet_tagger(), (1, 16))))
    quants = [node for node in model.graph.node if node.op_type == "Quant"]
    assert {node.domain for node in quants} == {"qonnx.custom_op.general"}
    steps = [node for node in quants if node.input[0] in {tensor.name for tensor in model.graph.initializer}]
    assert len(steps) == 4  # weights; the others round results and clamp them
    assert "qonnx.custom_op.general" in {opset.domain for opset in model.opset_import}
    assert {"0.weight", "6.weight"} <= {tensor.name for tensor in model.graph.initializer}


def evaluated(nodes: Nodes, x: float) -> Any:
    """What nodes of three kinds give, by qonnx's own function for Quant."""
    from qonnx.custom_op.general.intquant import int_quant

    values = {"x": np.array([x], np.float32), **{t.name: numpy_helper.to_array(t) for t in nodes.initializers}}
    result = values["x"]
    for node in nodes.nodes:
        given = [values[name] for name in node.input]
        if node.op_type == "Quant":
            options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            result = int_quant(*given, options["signed"], options["narrow"], options["rounding_mode"].decode())
        else:
            result = {"Add": np.add, "Mul": np.multiply}[node.op_type](*given)
        values[node.output[0]] = result.astype(np.float32)
    return result


@settings(max_examples=200, deadline=None)
@given(st.integers(-140, 20), st.integers(0, 255), st.floats(-600, 600, width=32), st.sampled_from([1.0, 0.37, 2.5]))
def test_quant_nodes_alone_round_and_clamp(low: int, width: int, value: float, scale: float) -> None:
    """Whatever the grid and whichever of its ends are reached, against rounding half to even and a clamp."""
    for reach in ((-math.inf, math.inf), (float(low), math.inf), (-math.inf, float(low + width))):
        step = np.float32(scale)
        x = np.float32(np.clip(np.float32(value) / step, *reach) * step)
        nodes = Nodes()
        nodes.onto_grid("x", low, low + width, reach, float(step))
        assert evaluated(nodes, x)[0] == np.clip(np.round(x / step), low, low + width)
