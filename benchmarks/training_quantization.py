"""Quantization-aware training beside rounding after training: accuracy in percent on held-out data.

The ResNet-8 has 16, 32 and 64 channels, as MLPerf Tiny's. Its digits carry normal noise of deviation 0.6 (pixels span
[-1, 1]): without noise even 3 bits cost next to nothing, and no method could be told from another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import tersor as ts

from .results import Row
from .trained import Trained, digits_cnn
from .trained.seeds import SEEDS, row

PER_TENSOR = ts.QuantType(4, symmetric=True)
PER_CHANNEL = ts.INT4.weight
W4A4_PER_TENSOR = ts.Scheme(ts.QuantType(4), PER_TENSOR)
W3A3_PER_TENSOR = ts.Scheme(ts.QuantType(3), ts.QuantType(3, symmetric=True))
W2A2 = ts.Scheme(ts.QuantType(2), ts.QuantType(2, True, PER_CHANNEL.granularity))
W3A3 = ts.Scheme(ts.QuantType(3), ts.QuantType(3, True, PER_CHANNEL.granularity))
CNN = ts.Training(epochs=4, learning_rate=2e-3, warmup=0.1, clip_norm=1.0, progress=False)


@cache
def cnn(seed: int) -> Trained:
    """The noisy task."""
    return digits_cnn(seed, width=16, noise=0.6)


def rounded(model: Trained, scheme: ts.Scheme) -> float:
    """The score after quantization alone."""
    quantize = ts.Quantize(scheme, calibration=model.calibration())
    return model.score_after(quantize, progress=None)


def trained(model: Trained, scheme: ts.Scheme, training: ts.Training, **options: Any) -> float:
    """The score after quantization-aware training."""
    step = ts.TrainQuantized(
        model.train, model.loss, scheme, training=training, calibration=model.calibration(), **options
    )
    return model.score_after(step, progress=None)


def run(quick: bool) -> list[Row]:
    """Eight bits, four bits by channel and by tensor, two bits with and without each part of the method."""
    torch.set_num_threads(1)
    return _rows(SEEDS[:1] if quick else SEEDS, dataclasses.replace(CNN, epochs=1) if quick else CNN)


def _rows(seeds: tuple[int, ...], training: ts.Training) -> list[Row]:
    def each(score: Callable[[Trained], float]) -> list[float]:
        return [100 * score(cnn(seed)) for seed in seeds]

    exact = each(lambda model: model.score)
    rows = [
        row("ResNet-8, float", exact, "%"),
        beside_float("ResNet-8, QAT INT8", each(lambda m: trained(m, ts.INT8, training)), exact,
                      each(lambda m: rounded(m, ts.INT8)), "within 0.3 points of float"),
    ]  # fmt: skip
    per_channel = each(lambda m: trained(m, ts.INT4, training))
    rows.append(beside_float("ResNet-8, QAT W4A4", per_channel, exact, each(lambda m: rounded(m, ts.INT4))))
    per_tensor = each(lambda m: trained(m, W4A4_PER_TENSOR, training))
    rows.append(_gain("ResNet-8, W4A4 QAT, per channel over per tensor", per_channel, per_tensor))
    for name, pair in (("W4A4", (ts.INT4, W4A4_PER_TENSOR)), ("W3A3", (W3A3, W3A3_PER_TENSOR))):
        fine, coarse = (each(lambda m, s=s: _nearest(m, s)) for s in pair)  # type: ignore[misc]
        rows.append(_gain(f"ResNet-8, {name} rounded to the nearest, per channel over per tensor", fine, coarse))
    ours = each(lambda m: trained(m, W2A2, training))
    rows.append(beside_float("ResNet-8, QAT W2A2", ours, exact, each(lambda m: rounded(m, W2A2))))
    frozen = each(lambda m: trained(m, W2A2, training, ranges=ts.Ranges.FROZEN))
    alone = each(lambda m: trained(m, W2A2, training, distillation=None))
    rows.append(row("ResNet-8, QAT W2A2, learned step sizes", ours, "%", without=frozen, name="frozen ranges"))
    rows.append(row("ResNet-8, QAT W2A2, float self as teacher", ours, "%", without=alone, name="no teacher"))
    return rows


def _nearest(model: Trained, scheme: ts.Scheme) -> float:
    """Quantization without anything that mends what one scale for a tensor costs."""
    plain = ts.Quantize(
        scheme, model.calibration(), equalize=False, round_weights=False, correct_bias=False, smooth=False
    )
    return model.score_after(plain, progress=None)


def beside_float(what: str, ours: list[float], exact: list[float], after: list[float], goal: str = "") -> Row:
    """A figure beside that of rounding after training, with what is lost of the float program's."""
    lost = sum(exact) / len(exact) - sum(ours) / len(ours)
    return row(what, ours, "%", without=after, name="PTQ", goal=goal, note=f"{lost:+.2f} points below float")


def _gain(what: str, fine: list[float], coarse: list[float]) -> Row:
    gains = [a - b for a, b in zip(fine, coarse, strict=True)]
    note = f"{sum(gains) / len(gains):+.2f} points"
    return row(what, fine, "%", without=coarse, name="per tensor", goal="0.5 to 1 point better", note=note)
