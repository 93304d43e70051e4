"""INT8 engines of TensorRT: ours beside the same model quantized by onnxruntime's static quantizer, built the same way.

Each model is quantized by both from the same calibration inputs, symmetric int8 activations and per-channel weights,
biases in float, as TensorRT takes them. One script builds both engines for the same compute capabilities, without a
GPU. What is compared: how long the builder takes, how large the plan is, and the share of multiply-accumulates that the
plan's kernels run in int8. Where TensorRT refuses the peer's file, the row says so.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.tensorrt.artifact import TensorRTArtifact
from tersor.backends.tensorrt.audit import types_of_products
from tersor.backends.tensorrt.plan import kernels_of_plan

from .onnx_float_speed import MODELS
from .results import Row
from .trained import digits_cnn

PEER = "onnxruntime quantize_static, symmetric int8"
BATCHES = 4
Built = tuple[float, int, float]
"""Seconds of the builder, bytes of the plan, share of multiply-accumulates in int8."""


def run(quick: bool) -> list[Row]:
    """Three rows a model."""
    chosen = os.environ.get("TERSOR_BENCH_MODELS")
    names = [name for name in ("digits CNN", *MODELS) if chosen is None or name in chosen.split(",")]
    return [row for name in names for row in _rows(name, quick)]


def _rows(name: str, quick: bool) -> list[Row]:
    torch.manual_seed(0)
    model, inputs = _model(name, quick)
    calibration = [_another(inputs) for _ in range(BATCHES)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours, artifact = _ours(model.eval(), inputs, calibration, folder / "ours")
        peer, refused = _peer(model, inputs, calibration, folder, artifact)
    linear = artifact.integer_share("conv1d", "conv2d", "linear")
    fits = f"convolutions and linears: {linear:.1%}"
    seconds, size, share = (None, None, None) if peer is None else peer
    return [
        Row(f"{name}: build", ours[0], "s", seconds, PEER, seconds and seconds / ours[0], "", refused),
        Row(f"{name}: plan", ours[1] / 1e6, "MB", size and size / 1e6, PEER, size and size / ours[1]),
        Row(f"{name}: int8 share of MACs", ours[2], "", share, PEER, share and ours[2] / share, "", fits),
    ]


def _model(name: str, quick: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    if name == "digits CNN":
        digits = digits_cnn()
        return digits.model, {"x": digits.calibration(1)[0][:1]}
    return MODELS[name](quick)


def _another(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of the same kind: other pixels, other tokens, the same mask."""

    def drawn(name: str, value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn_like(value)
        return torch.randint_like(value, 0, int(value.max()) + 1) if name == "input_ids" else value

    return {name: drawn(name, value) for name, value in inputs.items()}


def _ours(
    model: nn.Module, inputs: dict[str, Tensor], calibration: list[dict[str, Tensor]], out: Path
) -> tuple[Built, TensorRTArtifact]:
    quantize = ts.Quantize(ts.INT8_SYMMETRIC, calibration=calibration, pair_safe=False)
    program = ts.PassManager([quantize], progress=False).run(ts.trace(model, (), inputs)).program
    artifact = ts.lower(program, "tensorrt", out)
    assert isinstance(artifact, TensorRTArtifact)
    assert artifact.info is not None
    return (artifact.info.seconds, artifact.engine.stat().st_size, artifact.integer_share()), artifact


def _peer(
    model: nn.Module,
    inputs: dict[str, Tensor],
    calibration: list[dict[str, Tensor]],
    folder: Path,
    artifact: TensorRTArtifact,
) -> tuple[Built | None, str]:
    """What the peer's file becomes, and what had to be done for that.

    With its defaults the quantizer puts constants onto grids that TensorRT refuses: then its products alone.
    """
    exported = _exported(model, inputs, folder / "float.onnx")
    built, refusal = None, ""
    for operators, said in (
        (None, ""),
        (["Conv", "Gemm", "MatMul"], "; built with its convolutions and products alone"),
    ):
        place = folder / ("peer_products" if operators else "peer")
        place.mkdir()
        _quantize_static(exported, place / "model.onnx", calibration, operators)
        built, why = _build(place, artifact)
        if built is not None:
            return built, f"{refusal}{said}"
        refusal = f"the peer's file is refused: {why}"
    return built, refusal


def _build(folder: Path, artifact: TensorRTArtifact) -> tuple[Built | None, str]:
    """Build the ONNX file in a folder as ours was built; why not, where it is refused."""
    shutil.copy(artifact.path / "build_engine.py", folder)
    request = json.loads((artifact.path / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps({**request, "profiles": [], "timing_cache": None}))
    done = subprocess.run([sys.executable, folder / "build_engine.py"], capture_output=True, text=True, check=False)
    if done.returncode:
        return None, (done.stdout or done.stderr).strip().splitlines()[0][:160]
    result, plan = json.loads((folder / "result.json").read_text()), folder / "model.engine"
    return (result["seconds"], plan.stat().st_size, _integer_share(folder / "model.onnx", plan)), ""


def _exported(model: nn.Module, inputs: dict[str, Tensor], path: Path) -> Path:
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "use_cache"):
        config.use_cache = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (), path, kwargs=inputs, dynamo=True, verbose=False)
    return path


def _quantize_static(
    source: Path, target: Path, calibration: list[dict[str, Tensor]], operators: list[str] | None
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        """The inputs one by one, as the quantizer asks for them."""

        def __init__(self) -> None:
            feeds = [{name: value.numpy() for name, value in batch.items()} for batch in calibration]
            self.samples: Iterator[Any] = iter(feeds)

        def get_next(self) -> Any:
            return next(self.samples, None)

    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        source, target, Reader(), op_types_to_quantize=operators, per_channel=True, extra_options=symmetric, **kinds
    )


def _integer_share(model: Path, plan: Path) -> float:
    """The share of a file's multiply-accumulates that a plan's kernels run in int8."""
    macs = _multiply_accumulates(onnx.shape_inference.infer_shapes(onnx.load(model)).graph)
    types = types_of_products(kernels_of_plan(plan))
    total = sum(macs.values())
    return sum(count for name, count in macs.items() if types.get(name) == ("int8", "int8")) / total if total else 0.0


def _multiply_accumulates(graph: onnx.GraphProto) -> dict[str, int]:
    """By node, from inferred shapes: products of the sizes that are summed over with those of the result."""
    infos = (*graph.value_info, *graph.input, *graph.output)
    sizes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos}
    sizes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":
            found[node.name] = math.prod(sizes[node.output[0]]) * math.prod(sizes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            found[node.name] = math.prod(sizes[node.output[0]]) * sizes[node.input[0]][0 if transposed else -1]
    return found
