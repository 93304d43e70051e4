"""What the tests of ONNX share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

RunOnnx = Callable[[onnx.ModelProto, Sequence[Tensor]], list[Tensor]]


@pytest.fixture(scope="session")
def run_onnx() -> RunOnnx:
    """Check a model and run it in ONNX Runtime with its optimizations, on one thread."""
    return _run


def _run(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> list[Tensor]:
    """ONNX Runtime's outputs, optimizations on."""
    onnx.checker.check_model(model, full_check=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]
