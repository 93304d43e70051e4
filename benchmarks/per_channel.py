"""One weight scale a channel beside one a tensor: accuracy in percent after rounding, nothing trained.

It matters where channels differ in range, as in depthwise convolutions whose batch norms are folded, and where nothing
mends what one scale costs. So there are two networks, a depthwise one and a ResNet-8, each rounded to the nearest, and
rounded with all that `Quantize` does by default: equalized layers, learned rounding and corrected biases. The digits
carry noise, of deviation 0.3 for the first and 0.6 for the second, as in training_quantization.
"""

from __future__ import annotations

from functools import cache

import torch

import tersor as ts

from .results import Row
from .trained import Trained, digits_cnn, digits_mobile
from .trained.seeds import SEEDS, row

PER_CHANNEL = ts.INT8.weight.granularity
BITS = ((8, 8), (4, 8), (4, 4))


@cache
def depthwise(seed: int, held_out: bool = False) -> Trained:
    """A network of depthwise separable convolutions."""
    return digits_mobile(seed, width=16, noise=0.3, held_out=held_out)


@cache
def residual(seed: int, held_out: bool = False) -> Trained:
    """A ResNet-8."""
    return digits_cnn(seed, width=16, noise=0.6, held_out=held_out)


def rounded(model: Trained, weight: int, activation: int, per_channel: bool, mended: bool = False) -> float:
    """The accuracy with so many bits; mended: with everything that `Quantize` does by default."""
    kind = ts.QuantType(weight, True, PER_CHANNEL) if per_channel else ts.QuantType(weight, symmetric=True)
    scheme = ts.Scheme(ts.QuantType(activation), kind)
    quantize = ts.Quantize(scheme, model.calibration())
    if not mended:
        quantize = ts.Quantize(
            scheme, model.calibration(), equalize=False, round_weights=False, correct_bias=False, smooth=False
        )
    return 100 * model.score_after(quantize)


def run(quick: bool) -> list[Row]:
    """Both networks, in each number of bits."""
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    rows = []
    for name, models in (
        ("DS-CNN", [depthwise(seed) for seed in seeds]),
        ("ResNet-8", [residual(seed) for seed in seeds]),
    ):
        rows.append(row(f"{name}, float", [100 * model.score for model in models], "%"))
        for weight, activation in BITS[1:2] if quick else BITS:
            for mended in (False, True):
                fine, coarse = (
                    [rounded(model, weight, activation, by, mended) for model in models] for by in (True, False)
                )
                note = f"{(sum(fine) - sum(coarse)) / len(fine):+.2f} points"
                goal = "0.5 to 1 point better" if weight == 4 and not mended else ""
                what = f"{name}, W{weight}A{activation}, {'all of Quantize' if mended else 'rounded to the nearest'}"
                rows.append(row(what, fine, "%", without=coarse, name="per tensor", goal=goal, note=note))
    return rows
