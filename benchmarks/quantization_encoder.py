"""Speed and calibration at a sentence encoder's size: a BERT of 6 layers, 384 wide, 64 tokens, random weights.

Speed is of one sequence on one thread in ONNX Runtime, with all of its optimizations, over two float32 models: the one
that torch.onnx exports, and the one from the same emitter as the quantized ones, which has attention as one operator.
All run in turns, one call at a time, so that each finds the caches as the others leave them; the figure is the median.
"""

from __future__ import annotations

import resource
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor as ts
from tersor.timing import measure, torch_threads

from .quantization import open_session
from .results import Row

EXPORTED = "float32 as torch.onnx exports it"
YARDSTICKS = (EXPORTED, "float32")


def run(quick: bool) -> list[Row]:
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
    rows = _speeds(model, program, few, tokens(1), seconds=1 if quick else 8)
    with torch_threads(2):
        _calibrated(program, (tokens(8) for _ in range(samples // 32)))
        seconds, grown = _calibrated(program, (tokens(8) for _ in range(samples // 8)))
    rows.append(Row(f"Quantize with {samples} samples", seconds, "s", goal="< 60 s on 2 cores"))
    what = f"memory that {samples} samples take beyond {samples // 4}"
    return [*rows, Row(what, grown, "MB", goal="none", note="peak of the process")]


def _speeds(
    model: nn.Module, program: ts.Program, batches: list[dict[str, Tensor]], inputs: dict[str, Tensor], seconds: float
) -> list[Row]:
    passes: dict[str, list[ts.Pass]] = {
        "float32": [ts.Canonicalize()],
        "INT8": [ts.Quantize(calibration=batches)],
        "dynamic INT8": [ts.QuantizeDynamic()],
        "INT4 weights": [ts.QuantizeWeights()],
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {EXPORTED: Path(folder) / "exported.onnx"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (), paths[EXPORTED], kwargs=inputs, dynamo=True, verbose=False)
        for name, steps in passes.items():
            quantized = ts.PassManager(steps, progress=False).run(program).program
            paths[name] = ts.lower(quantized, out=Path(folder) / name).path / "model.onnx"
        feed = {name: value.numpy() for name, value in inputs.items()}
        calls = {name: partial(open_session(path).run, None, feed) for name, path in paths.items()}
        latency = {name: found.median for name, found in measure(calls, seconds=seconds).items()}
    return [_speed(name, yardstick, latency) for name in paths if name not in YARDSTICKS for yardstick in YARDSTICKS]


def _speed(name: str, yardstick: str, seconds: Mapping[str, float]) -> Row:
    ratio = seconds[yardstick] / seconds[name]
    note = f"{1e3 * seconds[name]:.2f} ms, float32 {1e3 * seconds[yardstick]:.2f} ms"
    return Row(f"{name}: speed over {yardstick}", ratio, "x", goal=">= 2.8 x" if name == "INT8" else "", note=note)


def _calibrated(program: ts.Program, batches: Iterable[Any]) -> tuple[float, float]:
    """Seconds, and megabytes by which the peak of the process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ts.PassManager([ts.Quantize(calibration=batches)], progress=False).run(program)
    seconds = time.perf_counter() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
