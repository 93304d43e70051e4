"""Small models to be made harmful, what refuses them, and a limit on what that may take."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tersor.frontends.onnx.load import load_onnx
from tersor.ir.errors import TraceError
from tersor.ir.program import Program

FLOAT = TensorProto.FLOAT
HUGE = 1 << 40
Shape = Sequence[int | str]


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """A GiB more than what is taken already, and ten seconds of a processor."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), old[1]))
    started = time.process_time()
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)
    assert time.process_time() - started < 10


def values(*names: str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, FLOAT, None) for name in names]


def floats(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def build(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Shape],
    output: str = "y",
    weights: dict[str, Any] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    given = [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in inputs.items()]
    graph = helper.make_graph(list(nodes), "net", given, values(output), stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], **options)


def load(model: onnx.ModelProto, folder: Path) -> Program:
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return load_onnx(folder / "net.onnx").verify()


def refusal(model: onnx.ModelProto, folder: Path, message: str, node: str | None = None) -> None:
    """The model is refused, and the text names the file, the node and what is wrong."""
    with pytest.raises(TraceError, match=message) as raised:
        load(model, folder)
    assert str(folder / "net.onnx") in str(raised.value)
    assert raised.value.node == node
    assert not any(word in str(raised.value) for word in ("allocate", "MemoryError", "recursion"))


def operators(program: Program) -> list[str]:
    return [str(n.target).removeprefix("aten.") for n in program.graph.nodes if n.op == "call_function"]


def node(operator: str, inputs: str, output: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)
