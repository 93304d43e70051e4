"""Accuracy after quantization on trained models, and speed and calibration time on a sentence encoder's size.

Accuracy: a CNN and a vision transformer on scikit-learn's digits, and a byte-level language model on the source of
Python's standard library, each scored on held-out data by ONNX Runtime. `naive` is min-max ranges and rounding to
the nearest without anything else; the peer is onnxruntime's own quantizer on the model that torch.onnx exports.

Speed: a BERT of 6 layers, 384 wide, 64 tokens, random weights, one thread, one sequence.
"""

from __future__ import annotations

import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.quantization import Observer
from tersor.timing import measure, torch_threads

from .results import Row
from .trained import Trained, byte_language_model, digits_cnn, digits_vit

NAIVE: dict[str, Any] = {
    "observer": Observer.MIN_MAX,
    "smooth": False,
    "equalize": False,
    "round_weights": False,
    "correct_bias": False,
}


def run(quick: bool) -> list[Row]:
    """Accuracy rows of each model, then speed and calibration of the encoder."""
    models = [digits_cnn()] if quick else [digits_cnn(), digits_vit(), byte_language_model()]
    rows = [row for trained in models for row in accuracy(trained)]
    return [*rows, *encoder(quick)]


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
    session = _session(quantize(trained, data, folder))
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
    name = _session(exported).get_inputs()[0].name
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


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


# -- speed and calibration -------------------------------------------------------------------------------------------


def encoder(quick: bool) -> Iterator[Row]:
    """Speed of INT8, static and dynamic, and of INT4 weights over float32; calibration time and memory."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=1 if quick else 6, num_attention_heads=12, intermediate_size=1536
    )
    model = nn.Module.eval(BertModel(config, add_pooling_layer=False))
    generator = torch.Generator().manual_seed(1)

    def tokens(rows: int) -> dict[str, Tensor]:
        ids = torch.randint(0, config.vocab_size, (rows, 64), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    program = ts.trace(model, (), tokens(1), dynamic={name: {0: "batch"} for name in ("input_ids", "attention_mask")})
    samples = 32 if quick else 512
    few = [tokens(8) for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        passes: dict[str, list[ts.Pass]] = {
            "float32": [ts.Canonicalize()],
            "INT8": [ts.Quantize(calibration=few)],
            "dynamic INT8": [ts.QuantizeDynamic()],
            "INT4 weights": [ts.QuantizeWeights()],
        }
        sessions = {}
        for name, steps in passes.items():
            quantized = ts.PassManager(steps, progress=False).run(program).program
            sessions[name] = _session(ts.lower(quantized, out=Path(folder) / name).path / "model.onnx")
        feed = {name: value.numpy() for name, value in tokens(1).items()}
        calls = {name: partial(session.run, None, feed) for name, session in sessions.items()}
        latency = {name: found.median for name, found in measure(calls, seconds=1 if quick else 8).items()}
    goals = {"INT8": ">= 2.8 x"}
    for name in ("INT8", "dynamic INT8", "INT4 weights"):
        note = f"{1e3 * latency[name]:.2f} ms, float32 {1e3 * latency['float32']:.2f} ms"
        ratio = latency["float32"] / latency[name]
        yield Row(f"encoder, {name}: speed over float32", ratio, "x", goal=goals.get(name, ""), note=note)
    with torch_threads(2):
        seconds, _ = _calibrated(program, (tokens(8) for _ in range(samples // 8)))
        _, grown = _calibrated(program, (tokens(8) for _ in range(samples // 4)))
    yield Row(f"encoder, Quantize with {samples} samples", seconds, "s", goal="< 60 s on 2 cores")
    yield Row("encoder, memory that twice the samples add", grown, "MB", goal="none", note="peak of the process")


def _calibrated(program: ts.Program, batches: Iterable[Any]) -> tuple[float, float]:
    """Seconds, and megabytes by which the peak of the process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ts.PassManager([ts.Quantize(calibration=batches)], progress=False).run(program)
    seconds = time.perf_counter() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
