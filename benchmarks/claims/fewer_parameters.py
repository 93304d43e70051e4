"""Claim 5: 80 % of the parameters go in steps for at most 1.2 points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .. import training_pruning as source
from .claim import Claim, Figure, at_most
from .workers import differences, per_seed


def one(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent: float, pruned in steps, and in one cut with as much training."""
    recover = dataclasses.replace(source.RECOVER, epochs=1, steps=2) if quick else source.RECOVER
    return {
        "float": 100 * source.model(seed).score,
        "steps": source.parameters(seed, source.STEPS, recover),
        "once": source.parameters(seed, 1, recover),
    }


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """Points below float."""
    found = per_seed(seeds, quick, one)
    lost, once = (differences(found["float"], found[name]) for name in ("steps", "once"))
    note = f"float has {sum(found['float']) / len(seeds):.2f} %"
    what = "lost with 80 % of the parameters gone"
    return [Figure(what, lost, "points", at_most(1.2), once, "in one cut, trained as long", note)]


CLAIM = Claim(
    5,
    "Progressive pruning: 80 % fewer parameters for at most 1.2 points",
    "a ResNet-8 on digits with noise of deviation 0.6, cut in four steps with training after each, the float program "
    "as teacher; negative: better than float",
    "more steps, or longer training after each",
    2,
    measure,
)
