"""Quantization-aware training of transformers beside rounding after training, on held-out data.

A vision transformer on digits, in percent, and a byte-level language model on the source of Python's standard library,
in bits per byte. The first run trains the language model for about a minute a seed on a core.
"""

from __future__ import annotations

import torch

import tersor as ts

from .results import Row
from .trained import byte_language_model, digits_vit
from .trained.seeds import SEEDS, row
from .training_quantization import beside_float, rounded, trained

VIT = ts.Training(epochs=3, learning_rate=3e-4, warmup=0.1, clip_norm=1.0, progress=False)
LANGUAGE = ts.Training(steps=40, learning_rate=3e-4, warmup=0.1, clip_norm=1.0, progress=False)


SCHEMES = {"INT8": ts.INT8, "W4A8": ts.W4A8}


def vision(seed: int) -> dict[str, float]:
    """Accuracies in percent of one seed: in float, and rounded and trained in each scheme."""
    model = digits_vit(seed)
    found = {"float": 100 * model.score}
    for name, scheme in SCHEMES.items():
        found[f"{name} PTQ"] = 100 * rounded(model, scheme)
        found[f"{name} QAT"] = 100 * trained(model, scheme, VIT)
    return found


def language(seed: int) -> dict[str, float]:
    """Bits a byte of one seed: in float, and rounded and trained with weights of 4 bits."""
    model = byte_language_model(seed)
    return {
        "float": model.score,
        "PTQ": rounded(model, ts.W4A8),
        "QAT": trained(model, ts.W4A8, LANGUAGE),
    }


def run(quick: bool) -> list[Row]:
    """Rows of the vision transformer, then of the language model."""
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    return rows([vision(seed) for seed in seeds], [language(seed) for seed in seeds])


def rows(vision: list[dict[str, float]], language: list[dict[str, float]]) -> list[Row]:
    """The table, from the figures of each seed."""
    images, text = (
        {name: [seed[name] for seed in found] for name in found[0]} for found in (vision, language)
    )  # fmt: skip
    table = [
        beside_float(f"ViT, QAT {name}", images[f"{name} QAT"], images["float"], images[f"{name} PTQ"])
        for name in SCHEMES
    ]
    note = f"float {', '.join(f'{value:.4g}' for value in text['float'])}; lower is better"
    table.append(row("language model, QAT W4A8", text["QAT"], "bits/byte", without=text["PTQ"], name="PTQ", note=note))
    return table
