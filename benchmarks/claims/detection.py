"""Claim 9: from 200 to 20 milliseconds, a detector's ResNet-50 on 512x512 pixels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.passes.compare import difference
from tersor.passes.progress import track
from tersor.passes.pruning.latency import LatencyTable
from tersor.timing import measure as timed

from ..resnet50_int8 import _session, images
from .claim import Claim, Figure, at_least

SHARES = (0.3, 0.25, 0.2, 0.17, 0.145, 0.125, 0.11, 0.095, 0.08, 0.065)
"""Of the latency by the table, tried in this order until INT8 is ten times as fast as the whole in float."""

FASTER = 10.0
_MARGIN = 1.03
CLASSES = 80


class Detector(nn.Module):
    """ResNet-50 with a head on its last three stages: image float32[1, 3, h, w] to class scores and boxes.

    Maps float32[1, 84, h/s, w/s] at strides 8, 16 and 32.
    """

    def __init__(self, quick: bool) -> None:
        from transformers import ResNetBackbone, ResNetConfig

        super().__init__()
        stages = ["stage2", "stage3", "stage4"]
        options: dict[str, Any] = {"out_features": stages}
        widths = [512, 1024, 2048]
        if quick:
            widths = [128] * 3
            options |= {"embedding_size": 32, "hidden_sizes": [128, *widths], "depths": [1] * 4, "layer_type": "basic"}
        self.backbone = ResNetBackbone(ResNetConfig(**options))
        self.laterals = nn.ModuleList([nn.Conv2d(channels, 256, 1) for channels in widths])
        self.predict = nn.ModuleList([nn.Conv2d(256, CLASSES + 4, 1) for _ in stages])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """All three maps."""
        maps = self.backbone(x).feature_maps
        lateral = [torch.relu(layer(given)) for layer, given in zip(self.laterals, maps, strict=True)]
        return tuple(layer(given) for layer, given in zip(self.predict, lateral, strict=True))


@dataclass(frozen=True)
class Files:
    """A detector of one seed as ONNX files, its shares, and how near INT8 is to the float program of its own size."""

    whole: Path
    int8: Path
    pruned: Path
    pruned_int8: Path
    macs: float
    parameters: float
    sqnr: float


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """The speed of INT8, of pruning, and of both; the share of the table that it took."""
    size = 128 if quick else 512
    with tempfile.TemporaryDirectory() as folder:
        table, share = _share(seeds[0], quick, size, Path(folder) / "search")
        made = [
            _make(seed, quick, size, Path(folder) / str(seed), table, share) for seed in track(list(seeds), "detectors")
        ]
        image = images(1, 99, size)[0]
        found = [_times(files, image, quick) for files in made]
    kinds = {"INT8 alone": "int8", "pruning alone": "pruned", "pruning and INT8": "pruned_int8"}
    whole = tuple(1e3 * times["float"] for times in found)
    speeds = {what: tuple(times["float"] / times[key] for times in found) for what, key in kinds.items()}
    both = speeds["pruning and INT8"]
    absent = speeds["INT8 alone"]
    return [
        Figure("faster, pruning and INT8", both, "x", at_least(FASTER), absent, "INT8 alone"),
        Figure("faster, pruning alone", speeds["pruning alone"], "x"),
        Figure(
            "latency, image to maps", tuple(1e3 * times["pruned_int8"] for times in found), "ms", None, whole, "float32"
        ),
        Figure("multiply-accumulates left", tuple(100 * files.macs for files in made), "%"),
        Figure("parameters left", tuple(100 * files.parameters for files in made), "%"),
        Figure("latency by the table, as asked for", (100 * share,), "%"),
        Figure("SQNR of INT8 against the pruned program in float", tuple(files.sqnr for files in made), "dB"),
    ]


def _share(seed: int, quick: bool, size: int, folder: Path) -> tuple[LatencyTable, float]:
    """The table, and the largest share tried at which INT8 is ten times as fast; the last, where none is.

    Neither depends on the weights: all seeds have channels in the same counts.
    """
    program = _program(seed, quick, size)
    table = ts.latency_table(program, OnnxRuntime(audit=False), seconds=0.001 if quick else 0.01, threads=1)
    whole, calibration = _lower(program, folder / "float"), images(1, 1, size)
    for share in SHARES[:1] if quick else SHARES:
        small = _lower(_quantized(_pruned(program, table, share), calibration), folder / str(share))
        if _faster(whole, small, calibration[0], quick) >= _MARGIN * FASTER:
            break
    return table, share


def _make(seed: int, quick: bool, size: int, folder: Path, table: LatencyTable, share: float) -> Files:
    calibration, held_out = images(2, 1, size), images(1, 98, size)[0]
    program = _program(seed, quick, size)
    pruned = _pruned(program, table, share)
    quantized = _quantized(pruned, calibration)
    with torch.no_grad():
        sqnr = difference(list(pruned(held_out)), list(quantized(held_out))).sqnr
    before, after = program.cost(), pruned.cost()
    return Files(
        whole=_lower(program, folder / "whole"),
        int8=_lower(_quantized(program, calibration), folder / "int8"),
        pruned=_lower(pruned, folder / "pruned"),
        pruned_int8=_lower(quantized, folder / "pruned-int8"),
        macs=after.macs / before.macs,
        parameters=after.parameters / before.parameters,
        sqnr=sqnr,
    )


def _program(seed: int, quick: bool, size: int) -> ts.Program:
    torch.manual_seed(seed)
    return ts.trace(Detector(quick).eval(), (images(1, 1, size)[0],))


def _pruned(program: ts.Program, table: LatencyTable, share: float) -> ts.Program:
    """Every axis cut alike, in multiples of what ONNX Runtime's blocked layouts like."""
    step = ts.PruneChannels(ts.Latency(share, table), ranking=ts.Ranking.LOCAL, multiple=16)
    return ts.PassManager([step], progress=False).run(program).program


def _quantized(program: ts.Program, calibration: list[Tensor]) -> ts.Program:
    step = ts.Quantize(ts.INT8, calibration=calibration, round_weights=False)
    return ts.PassManager([step], progress=False).run(program).program


def _lower(program: ts.Program, folder: Path) -> Path:
    return ts.lower(program, OnnxRuntime(audit=False), folder).path / "model.onnx"


def _faster(whole: Path, other: Path, image: Tensor, quick: bool) -> float:
    times = timed({"whole": _call(whole, image), "other": _call(other, image)}, seconds=0.2 if quick else 3)
    return times["whole"].median / times["other"].median


def _times(files: Files, image: Tensor, quick: bool) -> dict[str, float]:
    """Medians in seconds, all files in turns."""
    paths = {"float": files.whole, "int8": files.int8, "pruned": files.pruned, "pruned_int8": files.pruned_int8}
    calls = {name: _call(path, image) for name, path in paths.items()}
    return {name: latency.median for name, latency in timed(calls, seconds=0.2 if quick else 5).items()}


def _call(path: Path, image: Tensor) -> partial[list[object]]:
    """From the float image to the float maps, quantization at both ends included."""
    session: onnxruntime.InferenceSession = _session(str(path))
    return partial(session.run, None, {session.get_inputs()[0].name: image.numpy()})


CLAIM = Claim(
    9,
    "A detection-sized case from 200 to 20 ms: a ResNet-50 backbone at 512x512, ten times faster end to end",
    "ResNet-50 with a one-layer head at strides 8, 16 and 32, ONNX Runtime on one thread, float image to float maps, "
    "all files in turns. Channels are cut by a latency table of ONNX Runtime, every axis alike and in multiples of "
    "16, by the largest share tried at which INT8 is ten times as fast. Weights are random: this shows latency, and "
    "what INT8 adds in error, but not what accuracy a trained detector would keep; claim 8 has the accuracy of a "
    "trained network pruned further than this one",
    "a smaller share of the channels",
    6,
    measure,
)
