"""Claim 3: training quantized comes within 0.3 points of float."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tersor as ts

from .. import training_quantization as source
from .claim import Claim, Figure, at_most
from .workers import differences, per_seed

SCHEMES = {"INT8": ts.INT8, "4 bits": ts.INT4, "2 bits": source.W2A2}


def one(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent: float, and each scheme after training quantized and rounded after training."""
    training = dataclasses.replace(source.CNN, epochs=1, steps=2) if quick else source.CNN
    model = source.cnn(seed)
    found = {"float": 100 * model.score}
    for name, scheme in SCHEMES.items():
        found[f"{name} trained"] = 100 * source.trained(model, scheme, training)
        found[f"{name} rounded"] = 100 * source.rounded(model, scheme)
    return found


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """Points below float."""
    found = per_seed(seeds, quick, one)
    return [
        Figure(
            f"{name}: below float",
            differences(found["float"], found[f"{name} trained"]),
            "points",
            at_most(0.3) if name == "INT8" else None,
            differences(found["float"], found[f"{name} rounded"]),
            "rounded after training",
        )
        for name in SCHEMES
    ]


CLAIM = Claim(
    3,
    "Training quantized (QAT) comes within 0.3 points of float",
    "a ResNet-8 on digits with noise of deviation 0.6, 4 epochs with step sizes learned and the float program as "
    "teacher; negative: better than float. The claim is of INT8; fewer bits stand beside it, where the method shows",
    "a longer run",
    2,
    measure,
)
