"""Accuracy after quantization on trained models, without and with outlier channels.

Accuracy: a CNN and a vision transformer on scikit-learn's digits, and a byte-level language model on the source of
Python's standard library, each scored on held-out data by ONNX Runtime. `naive` is min-max ranges and rounding to
the nearest without anything else; the peer is onnxruntime's own quantizer on the model that torch.onnx exports.

Outliers: the transformers with some channels of each norm made 60 times larger and what reads them 60 times smaller,
which is the same function; the cosine to the float outputs on held-out data.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.quantization import Observer
from tersor.passes.compare import difference

from .results import Row
from .trained import Trained, byte_language_model, digits_cnn, digits_vit
from .trained.digits_vit import Layer

NAIVE: dict[str, Any] = {
    "observer": Observer.MIN_MAX,
    "weight_observer": Observer.MIN_MAX,
    "smooth": False,
    "equalize": False,
    "round_weights": False,
    "correct_bias": False,
}


def run(quick: bool) -> list[Row]:
    """Accuracy rows of each model, then those of the transformers with outliers."""
    transformers = [] if quick else [digits_vit(), byte_language_model()]
    rows = [row for trained in (digits_cnn(), *transformers) for row in accuracy(trained)]
    return [*rows, *(with_outliers(trained) for trained in transformers)]


# -- accuracy --------------------------------------------------------------------------------------------------------


def accuracy(trained: Trained) -> Iterator[Row]:
    """Float, then a row a scheme: ours, with naive in the note, and the peer."""
    data = trained.calibration(16)
    # Two points are two hundredths of accuracy; bits per byte are judged by their ratio.
    fraction = trained.score <= 1
    unit = "% right" if fraction else "bits/byte"
    factor = 100 if fraction else 1
    goals = ("within 0.3 points", "", "") if fraction else ("within 1 %", "", "within 2 %")
    yield Row(f"{trained.name}, float32", factor * trained.score, unit)
    schemes: tuple[tuple[str, ts.Pass, ts.Pass | None, Callable[[Trained, list[Tensor], Path], Path]], ...] = (
        ("W8A8", ts.Quantize(calibration=data), ts.Quantize(calibration=data, **NAIVE), partial(_static, bits=8)),
        ("W4A8", ts.Quantize(ts.W4A8, calibration=data), ts.Quantize(ts.W4A8, calibration=data, **NAIVE),
         partial(_static, bits=4)),
        ("W4", ts.QuantizeWeights(calibration=data), ts.QuantizeWeights(), _weights),
    )  # fmt: skip
    for (name, ours, naive, peer), goal in zip(schemes, goals, strict=True):
        if name == "W4" and not _has_linears(trained):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = factor * _score(trained, ours, Path(folder))
            plain = factor * _score(trained, naive, Path(folder)) if naive is not None else None
            other = factor * _peer_score(trained, peer, data, Path(folder))
        yield Row(f"{trained.name}, {name}", found, unit, other, "onnxruntime's quantizer", None, goal,
                  f"naive {plain:.4g}; off float by {_off(found, factor * trained.score, fraction)}")  # fmt: skip


def _off(found: float, exact: float, fraction: bool) -> str:
    return f"{found - exact:+.2f} points" if fraction else f"{100 * (found / exact - 1):+.2f} %"


def _has_linears(trained: Trained) -> bool:
    return any(isinstance(module, nn.Linear) for module in trained.model.modules())


def _score(trained: Trained, step: ts.Pass, folder: Path) -> float:
    program = ts.PassManager([step], progress=False).run(trained.program).program
    artifact = ts.lower(program, out=folder / "ours")
    return trained.score_of(artifact.run)


def _peer_score(
    trained: Trained, quantize: Callable[[Trained, list[Tensor], Path], Path], data: list[Tensor], folder: Path
) -> float:
    session = open_session(quantize(trained, data, folder))
    name = session.get_inputs()[0].name
    return trained.score_of(lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0]))


def _exported(trained: Trained, data: list[Tensor], folder: Path) -> Path:
    """The model as torch.onnx exports it, prepared as onnxruntime asks for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, prepared = folder / "exported.onnx", folder / "prepared.onnx"
    shapes = {trained.program.signature.inputs[0].name: {0: torch.export.Dim("batch", min=1, max=4096)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": False, "dynamic_shapes": shapes}
        torch.onnx.export(trained.model, (data[0],), path, **options)
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    return prepared


def _static(trained: Trained, data: list[Tensor], folder: Path, bits: int) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        """The batches one by one, as the quantizer asks for them."""

        def __init__(self, name: str) -> None:
            self.samples: Iterator[Any] = iter({name: batch.numpy()} for batch in data)

        def get_next(self) -> Any:
            return next(self.samples, None)

    exported, quantized = _exported(trained, data, folder), folder / "peer.onnx"
    name = open_session(exported).get_inputs()[0].name
    weight = QuantType.QInt8 if bits == 8 else QuantType.QInt4
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": weight}
    quantize_static(
        str(exported), str(quantized), Reader(name), quant_format=QuantFormat.QDQ, per_channel=True, **kinds
    )
    return quantized


def _weights(trained: Trained, data: list[Tensor], folder: Path) -> Path:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(_exported(trained, data, folder))
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True)
    quantizer.process()
    quantized = folder / "peer.onnx"
    quantizer.model.save_model_to_file(str(quantized))
    return quantized


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


# -- outliers --------------------------------------------------------------------------------------------------------


def with_outliers(trained: Trained) -> Row:
    """The cosine of the outputs to the float ones, where activations have strong outlier channels."""
    model = deepcopy(trained.model)
    for layer in model.modules():
        if isinstance(layer, Layer):
            _scale(layer.norm1, layer.qkv)
            _scale(layer.norm2, layer.up)
    data, (inputs, _) = trained.calibration(16), trained.test[0]
    program = ts.trace(model, (data[0],), dynamic={trained.program.signature.inputs[0].name: {0: "batch"}})
    same = replace(trained, model=model, program=program)
    with torch.no_grad():
        exact = trained.program(inputs)
        assert difference([exact], [program(inputs)]).sqnr > 80
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        quantized = ts.PassManager([ts.Quantize(calibration=data)], progress=False).run(program).program
        ours = difference([exact], [ts.lower(quantized, out=out / "ours").run(inputs)]).cosine
        session = open_session(_static(same, data, out, bits=8))
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        peer = difference([exact], [torch.from_numpy(found)]).cosine
    what = f"{trained.name} with outlier channels, W8A8: cosine"
    return Row(what, ours, "", peer, "onnxruntime's quantizer", None, ">= 0.995")


def _scale(norm: nn.LayerNorm, reader: nn.Linear, factor: float = 60.0) -> None:
    channels = list(range(3, norm.weight.numel(), 20))
    with torch.no_grad():
        norm.weight[channels] *= factor
        norm.bias[channels] *= factor
        reader.weight[:, channels] /= factor
