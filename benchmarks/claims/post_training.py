"""Claim 2: what INT8 costs after training, and what a scale a channel gains where bits are few."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from .. import per_channel as source
from ..trained import Trained, digits_vit
from .claim import Claim, Figure, at_least, at_most
from .workers import differences, per_seed

FEW, MANY = (4, 8), (8, 8)
"""Bits of weights and activations."""


def one(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent: float, INT8 with all of `Quantize` and without, and few bits with a scale each way."""
    found: dict[str, float] = {}
    for name, model in _models(seed, quick).items():
        found[name] = 100 * model.score
        found[f"{name} INT8"] = source.rounded(model, *MANY, per_channel=True, mended=True)
        found[f"{name} INT8 plain"] = source.rounded(model, *MANY, per_channel=False)
    for name, model in (("DS-CNN", source.depthwise(seed)), ("ResNet-8", source.residual(seed))):
        for bits in (FEW, MANY):
            for how in (True, False):
                found[_key(name, bits, how)] = source.rounded(model, *bits, per_channel=how)
    return found


def _models(seed: int, quick: bool) -> dict[str, Trained]:
    found = {"ResNet-8": source.residual(seed), "DS-CNN": source.depthwise(seed)}
    return found if quick else {**found, "ViT": digits_vit(seed)}


def _key(name: str, bits: tuple[int, int], per_channel: bool) -> str:
    return f"{name} W{bits[0]}A{bits[1]} a {'channel' if per_channel else 'tensor'}"


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """Points lost at 8 bits; points gained by a scale a channel."""
    found = per_seed(seeds, quick, one)
    figures = []
    for name in (name for name in found if f"{name} INT8" in found):
        lost, plain = (differences(found[name], found[f"{name} {how}"]) for how in ("INT8", "INT8 plain"))
        note = f"float {mean(found[name]):.2f} %"
        absence = "rounded to the nearest, a scale a tensor"
        figures.append(Figure(f"{name}: lost to INT8", lost, "points", at_most(0.8), plain, absence, note))
    for name, bits in (("DS-CNN", FEW), ("DS-CNN", MANY), ("ResNet-8", FEW), ("ResNet-8", MANY)):
        fine, coarse = (found[_key(name, bits, how)] for how in (True, False))
        note = f"{mean(fine):.2f} % over {mean(coarse):.2f} %"
        wanted = at_least(0.5) if (name, bits) == ("DS-CNN", FEW) else None
        what = f"{name}, W{bits[0]}A{bits[1]}: gained by a scale a channel"
        figures.append(Figure(what, differences(fine, coarse), "points", wanted, note=note))
    return figures


CLAIM = Claim(
    2,
    "INT8 after training loses 0.8 to 1.5 points or less; a scale a channel gains 0.5 to 1 point over one a tensor "
    "where bits are few",
    "a ResNet-8 and a network of depthwise convolutions on digits with noise, of deviation 0.6 and 0.3, and a vision "
    "transformer on plain ones; 450 test images. What a scale a channel gains is measured on programs rounded to the "
    "nearest, since equalization and learned rounding mend what one a tensor costs. The bound is put where channels "
    "differ in range, the depthwise network with 4-bit weights; how little it matters elsewhere stands beside it",
    "more calibration data; for the gain, a network whose channels differ more",
    4,
    measure,
)
