"""Claim 1: INT8 is a quarter of the size, and three to five times as fast."""

from __future__ import annotations

from collections.abc import Sequence

from .. import resnet50_int8
from ..results import Row
from .claim import Claim, Figure, at_least, at_most


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """Size and speed of ResNet-50 and its INT8 program, with weights of each seed, beside onnxruntime's quantizer."""
    runs = [{row.what: row for row in resnet50_int8.run(quick, seed)} for seed in seeds]
    speed, file, sqnr = (
        [run[name] for run in runs]
        for name in ("speed over float32 in ONNX Runtime", "file", "SQNR less each logit's mean")
    )
    float_size = (1.0,) * len(seeds)
    peer = "onnxruntime's quantize_static"
    return [
        Figure("size of the INT8 file over float32's", tuple(1 / _ratio(row) for row in file), "x", at_most(0.26),
               float_size, "float32", "a quarter, and scales and biases"),
        Figure("speed over float32", tuple(row.ours for row in speed), "x", at_least(3), float_size, "float32"),
        Figure(f"speed over float32, {peer}", tuple(_peer(row) for row in speed), "x", None, float_size, "float32"),
        Figure("SQNR of the logits less their mean, held-out images", tuple(row.ours for row in sqnr), "dB", None,
               tuple(_peer(row) for row in sqnr), peer),
    ]  # fmt: skip


def _ratio(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio


def _peer(row: Row) -> float:
    assert row.peer is not None
    return row.peer


CLAIM = Claim(
    1,
    "INT8 is a quarter of the size, and 3 to 5 times faster than float32",
    "ResNet-50 from its transformers config, random weights of each seed, 224x224, 8 calibration images, ONNX "
    "Runtime on one thread; the float32 file, ours and the peer's run in turns. Random weights: the size and the "
    "time are those of a trained one, accuracy is claim 2's",
    "a CPU with AMX, whose tiles multiply the large convolutions: without it ONNX Runtime's symmetric kernels are the "
    "limit. The additions of residual blocks and the convolutions of the first stage gain little anywhere",
    4,
    measure,
)
