"""Speed and calibration at a sentence encoder's size: a BERT of 6 layers, 384 wide, 64 tokens, random weights.

Speed is of one sequence on one thread in ONNX Runtime, over float32 from the same emitter.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor as ts
from tersor.timing import measure, torch_threads

from .quantization import open_session
from .results import Row


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
            sessions[name] = open_session(ts.lower(quantized, out=Path(folder) / name).path / "model.onnx")
        feed = {name: value.numpy() for name, value in tokens(1).items()}
        calls = {name: partial(session.run, None, feed) for name, session in sessions.items()}
        latency = {name: found.median for name, found in measure(calls, seconds=1 if quick else 8).items()}
    goals = {"INT8": ">= 2.8 x"}
    rows = []
    for name in ("INT8", "dynamic INT8", "INT4 weights"):
        note = f"{1e3 * latency[name]:.2f} ms, float32 {1e3 * latency['float32']:.2f} ms"
        ratio = latency["float32"] / latency[name]
        rows.append(Row(f"{name}: speed over float32", ratio, "x", goal=goals.get(name, ""), note=note))
    with torch_threads(2):
        _calibrated(program, (tokens(8) for _ in range(samples // 32)))
        seconds, grown = _calibrated(program, (tokens(8) for _ in range(samples // 8)))
    rows.append(Row(f"Quantize with {samples} samples", seconds, "s", goal="< 60 s on 2 cores"))
    what = f"memory that {samples} samples take beyond {samples // 4}"
    return [*rows, Row(what, grown, "MB", goal="none", note="peak of the process")]


def _calibrated(program: ts.Program, batches: Iterable[Any]) -> tuple[float, float]:
    """Seconds, and megabytes by which the peak of the process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ts.PassManager([ts.Quantize(calibration=batches)], progress=False).run(program)
    seconds = time.perf_counter() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
