"""Claim 5: 80 % of the parameters go in steps for at most 1.2 points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .. import training_pruning as source
from .claim import Claim, Figure, at_most
from .workers import differences, per_seed

DEEP = 0.05
"""Of the parameters, where one cut is too much."""


def one(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent: float, pruned in steps, and in one cut with as much training."""
    recover = dataclasses.replace(source.RECOVER, epochs=1, steps=2) if quick else source.RECOVER
    return {
        "float": 100 * source.model(seed).score,
        "steps": source.parameters(seed, source.STEPS, recover),
        "once": source.parameters(seed, 1, recover),
        "steps, deep": source.parameters(seed, source.STEPS, recover, DEEP),
        "once, deep": source.parameters(seed, 1, recover, DEEP),
    }


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """Points below float."""
    found = per_seed(seeds, quick, one)
    lost = {name: differences(found["float"], values) for name, values in found.items()}
    note, absence = f"float has {sum(found['float']) / len(seeds):.2f} %", "in one cut, trained as long"
    what = "lost with 80 % of the parameters gone"
    deep = f"lost with {1 - DEEP:.0%} of them gone".replace("%", " %")
    return [
        Figure(what, lost["steps"], "points", at_most(1.2), lost["once"], absence, note),
        Figure(deep, lost["steps, deep"], "points", None, lost["once, deep"], absence),
    ]


CLAIM = Claim(
    5,
    "Progressive pruning: 80 % fewer parameters for at most 1.2 points",
    "a ResNet-8 on digits with noise of deviation 0.6, cut in four steps with training after each, the float program "
    "as teacher; negative: better than float",
    "more steps, or longer training after each",
    3,
    measure,
)
