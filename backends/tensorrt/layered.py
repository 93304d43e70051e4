"""The ONNX file with every value inside as an output, for comparing layer by layer, and ONNX Runtime as a stand-in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from torch import Tensor, from_numpy

from tersor.ir.errors import ArchiveError, LoweringError, MissingDependencyError

from .build_engine import find_package
from .execution import EngineRunner, load_engine

if TYPE_CHECKING:
    from .engine_file import EngineInfo


def write_layered(model: Path, folder: Path) -> Path:
    """Write a copy of an ONNX file that gives every float value inside under its own name, with its data beside."""
    document = onnx.load(model)
    given = {output.name for output in document.graph.output}
    floats = [info for info in document.graph.value_info if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    document.graph.output.extend(info for info in floats if info.name not in given and _is_made(document.graph, info))
    path = folder / "model.onnx"
    onnx.save(document, path, save_as_external_data=True, location="model.data")
    return path


def _is_made(graph: onnx.GraphProto, info: onnx.ValueInfoProto) -> bool:
    """Whether a node computes the value from what changes: dequantized weights are the same in any engine."""
    node = next((node for node in graph.node if info.name in node.output), None)
    stored = {tensor.name for tensor in graph.initializer}
    return node is not None and not stored.issuperset(node.input)


def build_layered(model: Path, info: EngineInfo | None, inputs: Sequence[str]) -> EngineRunner:
    """An engine that gives every value, built for the GPU here. Raises LoweringError."""
    assert info is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_layered(model, folder)
        request = json.loads((model.parent / "build.json").read_text())
        (folder / "build.json").write_text(json.dumps({**request, "package": info.package, "timing_cache": None}))
        shutil.copy(model.parent / "build_engine.py", folder)
        done = subprocess.run([sys.executable, folder / "build_engine.py"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoweringError("TensorRT could not build an engine that shows its layers", found=done.stdout[-2000:])
        trt = find_package(info.package, gpu=True)
        return EngineRunner(trt, load_engine(trt, folder / request["engine"]), inputs, graphs=False)


def run_onnx(model: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run an ONNX file on the CPU. Raises MissingDependencyError without onnxruntime, ArchiveError on a bad file."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime is not installed", hint="pip install onnxruntime") from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    # Node by node as the file says: its fusions are for uint8, and give other numbers for float8.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session: Any = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [from_numpy(value) for value in session.run(None, feed)]
    except Exception as error:  # onnxruntime raises types of its own, made at run time
        raise ArchiveError(f"ONNX Runtime cannot run {model}: {str(error).splitlines()[0]}") from error
