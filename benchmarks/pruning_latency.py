"""Whether half the multiply-accumulates are half the time: pruned programs in ONNX Runtime, beside what they were.

Each program and its half run on one thread in turns; the figure is the least time of many runs, which other work on the
machine disturbs least. Ideal is the time falling as the MACs do. Counts are multiples of 16, the width of ONNX
Runtime's blocked layouts: other counts fall back to slower kernels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import tersor as ts
from tersor.backends.onnxruntime.backend import OnnxRuntime

from .onnx_float_speed import MODELS, _call, _least
from .results import Row

NAMES = ("ResNet-50", "MobileNetV2", "ViT", "BERT", "Llama")
SHARE = 0.5
GOAL = 0.85


def run(quick: bool) -> list[Row]:
    """A row a model: the speed-up at half the MACs, beside the ideal one."""
    return [_row(name, quick) for name in NAMES]


def _row(name: str, quick: bool) -> Row:
    torch.manual_seed(0)
    model, inputs = MODELS[name](quick)
    program = ts.trace(model.eval(), (), inputs)
    pruned = ts.PruneChannels(ts.Macs(SHARE), ranking=ts.Ranking.LOCAL, multiple=16)(program)
    share = pruned.cost().macs / program.cost().macs
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for place, each in enumerate((program, pruned)):
            artifact = ts.lower(each, OnnxRuntime(audit=False), Path(folder) / str(place))
            files.append(artifact.path / "model.onnx")
        before, after = _least([_call(file, inputs) for file in files], seconds=2 if quick else 20)
    ideal = 1 / share
    found = before / after
    note = f"{before * 1e3:.2f} to {after * 1e3:.2f} ms at {share:.3f} of the MACs"
    return Row(f"{name}, half the MACs", found, "x faster", ideal, "the MACs' ratio", found / ideal, f">= {GOAL}", note)
