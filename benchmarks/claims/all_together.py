"""Claim 8: distilled, pruned and quantized together: 12.5 times fewer parameters, 8 and 20 times lower latency."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from torch import Tensor

import tersor as ts
from tersor.backends.base import Artifact
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.passes.progress import track
from tersor.timing import measure as timed

from ..resnet50_int8 import _session
from .claim import Claim, Figure, Values, at_least, at_most
from .wide_networks import FULL, METHODS, QUICK, Networks
from .workers import differences, per_seed

TITLES = {
    "quantized": "INT8 after training alone",
    "pruned": "pruning alone",
    "distilled": "distillation alone, into a student drawn small",
    "pruned-quantized": "pruning and INT8 after training",
    "distilled-quantized": "distillation and INT8 after training",
    "pruned-distilled": "pruning and distillation",
    "one-call": "ts.compress, told the share of the multiply-accumulates alone",
    "plain": "the small one of fresh weights, labels alone",
    "plain-quantized": "the same and INT8 after training",
}
"""What stands beside all together: methods alone, pairs, and the absence of all."""


def one(seed: int, quick: bool) -> dict[str, float]:
    """Train every network; the accuracy, in percent, of each ONNX file in ONNX Runtime, and the parameters."""
    networks = Networks(seed, QUICK if quick else FULL)
    found: dict[str, float] = {}
    for name in METHODS:
        program = networks.program(name)
        with tempfile.TemporaryDirectory() as folder:
            found[f"{name} accuracy"] = 100 * networks.teacher.score_of(_lower(program, Path(folder)).run)
        found[f"{name} parameters"] = program.cost().parameters
    return found


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """The claim's three figures and accuracy, then the same of everything that stands beside."""
    found = per_seed(seeds, quick, one)
    for name, seconds in latencies(seeds, quick).items():
        found[f"{name} latency"] = seconds
    lost, fewer, faster = (figure(found, "all") for figure in (_lost, _fewer, _faster))
    plain = "the small one, labels alone, INT8 after training"
    note = f"float {sum(found['teacher accuracy']) / len(seeds):.2f} %"
    figures = [
        Figure("all: fewer parameters", fewer, "x", at_least(12.5), _fewer(found, "distilled"), TITLES["distilled"]),
        Figure("all: lower latency", faster, "x", at_least(8), _faster(found, "quantized"), TITLES["quantized"]),
        Figure("all: lower latency", faster, "x", at_least(20, "wanted"), _faster(found, "pruned"), TITLES["pruned"]),
        Figure("all: lost", lost, "points", at_most(1, "wanted"), _lost(found, "plain-quantized"), plain, note),
        Figure("all: latency", _milliseconds(found, "all"), "ms", None, _milliseconds(found, "teacher"), "float"),
    ]
    for name, title in TITLES.items():
        beside = f"{mean(_fewer(found, name)):.3g} x fewer parameters, {mean(_faster(found, name)):.3g} x lower latency"
        figures.append(Figure(f"{title}: lost", _lost(found, name), "points", note=beside))
    return figures


def latencies(seeds: Sequence[int], quick: bool) -> dict[str, Values]:
    """Median seconds of one image in ONNX Runtime on one thread, all networks of a seed in turns."""
    by_seed = [_latencies(Networks(seed, QUICK if quick else FULL), quick) for seed in track(list(seeds), "latency")]
    return {name: tuple(each[name] for each in by_seed) for name in METHODS}


def _latencies(networks: Networks, quick: bool) -> dict[str, float]:
    image = networks.teacher.test[0][0][:1]
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for name in METHODS:
            artifact = _lower(networks.program(name), Path(folder) / name)
            calls[name] = _call(artifact, image)
        return {name: each.median for name, each in timed(calls, seconds=0.05 if quick else 2, warmup=20).items()}


def _lower(program: ts.Program, folder: Path) -> Artifact:
    return ts.lower(program, OnnxRuntime(audit=False, threads=1), folder)


def _call(artifact: Artifact, image: Tensor) -> partial[list[object]]:
    session = _session(str(artifact.path / "model.onnx"))
    return partial(session.run, None, {session.get_inputs()[0].name: image.numpy()})


def _lost(found: Mapping[str, Values], name: str) -> Values:
    return differences(found["teacher accuracy"], found[f"{name} accuracy"])


def _fewer(found: Mapping[str, Values], name: str) -> Values:
    return _ratios(found["teacher parameters"], found[f"{name} parameters"])


def _faster(found: Mapping[str, Values], name: str) -> Values:
    return _ratios(found["teacher latency"], found[f"{name} latency"])


def _milliseconds(found: Mapping[str, Values], name: str) -> Values:
    return tuple(1e3 * seconds for seconds in found[f"{name} latency"])


def _ratios(whole: Values, part: Values) -> Values:
    return tuple(a / b for a, b in zip(whole, part, strict=True))


CLAIM = Claim(
    8,
    "All together: 12.5 times fewer parameters and 8 times lower latency, measured; wanted: 20 times lower latency "
    "within one point",
    "a ResNet-8 of 128 to 512 channels on digits with noise of deviation 0.6, enlarged to 16x16; cut in three steps "
    "to 5 % of its multiply-accumulates (Taylor scores, multiples of 16), taught by itself after each, then trained "
    "in INT8; one image in ONNX Runtime on one thread, all files in turns, and accuracy of the same files on 450 "
    "test images. Negative: better than float",
    "a smaller share of the multiply-accumulates for latency, a larger one for accuracy",
    12,
    measure,
)
