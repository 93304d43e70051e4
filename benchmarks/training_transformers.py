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


def run(quick: bool) -> list[Row]:
    """Rows of the vision transformer, then of the language model."""
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    return [*_vision(seeds), *_language(seeds)]


def _vision(seeds: tuple[int, ...]) -> list[Row]:
    models = [digits_vit(seed) for seed in seeds]
    exact = [100 * m.score for m in models]
    rows = []
    for name, scheme in (("INT8", ts.INT8), ("W4A8", ts.W4A8)):
        after = [100 * rounded(m, scheme) for m in models]
        ours = [100 * trained(m, scheme, VIT) for m in models]
        rows.append(beside_float(f"ViT, QAT {name}", ours, exact, after))
    return rows


def _language(seeds: tuple[int, ...]) -> list[Row]:
    models = [byte_language_model(seed) for seed in seeds]
    after = [rounded(m, ts.W4A8) for m in models]
    ours = [trained(m, ts.W4A8, LANGUAGE) for m in models]
    note = f"float {', '.join(f'{m.score:.4g}' for m in models)}; lower is better"
    return [row("language model, QAT W4A8", ours, "bits/byte", without=after, name="PTQ", note=note)]
