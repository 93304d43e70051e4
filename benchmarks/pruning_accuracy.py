"""What is left of a model's accuracy when channels go, by criterion, with the same fine-tuning for all.

The digits CNN is trained on 400 noisy images, since on all of them every criterion ends near 99 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import tersor as ts

from .results import Row
from .trained import Trained, byte_language_model, digits_cnn

LEFT = (0.7, 0.5, 0.3, 0.2, 0.1)
"""The share of MACs that is left."""


def criteria(model: Trained) -> dict[str, ts.Criterion]:
    """Every criterion, on a few training batches where it needs data."""
    tensors = [tensor.split(model.train.size)[:8] for tensor in model.train.tensors]
    batches = list(zip(*tensors, strict=True))
    found: dict[str, ts.Criterion] = {
        "L1": ts.Magnitude(1),
        "L2": ts.Magnitude(2),
        "group-normalized": ts.Magnitude(normalized=True),
        "Taylor": ts.Taylor(batches, model.loss),
        "Fisher": ts.Fisher(batches, model.loss),
        "activation variance": ts.ActivationVariance([inputs for inputs, _ in batches]),
        "geometric median": ts.GeometricMedian(),
        "random": ts.Random(0),
    }
    if model.name == "digits_cnn":
        found["batch-norm scale"] = ts.BatchNormScale()
    return found


def run(quick: bool) -> list[Row]:
    """A row a model, share and criterion: the metric after fine-tuning."""
    rows = []
    cases: Sequence[tuple[Trained, ts.Training, str]] = [
        (digits_cnn(rows=400, noise=0.5), ts.Training(epochs=4, learning_rate=3e-3, keep_best=False), "accuracy"),
    ]
    if not quick:
        tuning = ts.Training(steps=20, learning_rate=2e-3, clip_norm=1.0, keep_best=False)
        cases = [*cases, (byte_language_model(), tuning, "bits per byte")]
    for model, training, unit in cases:
        rows.append(Row(f"{model.name}, all of its MACs", model.score, unit))
        for left in LEFT[1:2] if quick else LEFT:
            for name, criterion in criteria(model).items():
                rows.append(_row(model, training, unit, left, name, criterion))
    return rows


def _row(model: Trained, training: ts.Training, unit: str, left: float, name: str, criterion: ts.Criterion) -> Row:
    torch.manual_seed(0)
    pruned = ts.PruneChannels(ts.Macs(left), criterion, least=0.05)(model.program)
    tuned = ts.Finetune(model.train, model.loss, training=training)(pruned)
    share = pruned.cost().macs / model.program.cost().macs
    note = f"{share:.3f} of MACs, {pruned.cost().parameters:,} parameters left"
    return Row(f"{model.name}, {left:g} of MACs, {name}", model.score_of(tuned), unit, note=note)
