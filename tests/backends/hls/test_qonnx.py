"""The QONNX model, executed by the qonnx package, against the integer stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tersor.backends.hls.qonnx import inexact_nodes, qonnx_model
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, INT8_SYMMETRIC, Scheme

from .models import DsCnn, Mixed, ResNet, jet_tagger, quantized, sequence, streamlined

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Scheme]] = {
    "jet tagger": (jet_tagger, (1, 16), INT8),
    "residuals": (lambda: ResNet(4), (1, 3, 12, 12), INT8),
    "depthwise of 4 bits": (lambda: DsCnn(6, 1), (1, 1, 49, 10), INT4),
    "all the rest": (Mixed, (1, 3, 16, 12), INT8),
    "sequence": (sequence, (1, 3, 16), INT8),
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


def test_symmetric_grids_take_no_clip() -> None:
    program = streamlined(quantized(jet_tagger(), (1, 16), INT8_SYMMETRIC))
    assert not [node for node in qonnx_model(program).graph.node if node.op_type == "Clip"]
    frame = torch.randn(1, 16) * 9
    (found,) = executed(program, [frame])
    np.testing.assert_array_equal(found[0], program.run([frame])[0].numpy())


def test_it_is_in_the_dialect() -> None:
    model = qonnx_model(streamlined(quantized(jet_tagger(), (1, 16))))
    quants = [node for node in model.graph.node if node.op_type == "Quant"]
    assert {node.domain for node in quants} == {"qonnx.custom_op.general"}
    assert len(quants) == 4 + 4 + 1  # weights, results, the input
    assert "qonnx.custom_op.general" in {opset.domain for opset in model.opset_import}
    assert {"0.weight", "6.weight"} <= {tensor.name for tensor in model.graph.initializer}
