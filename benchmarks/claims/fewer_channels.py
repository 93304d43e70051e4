"""Claim 4: ranked by gradient, 40 % of the channels go at 99 % of the accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tersor as ts

from .. import training_pruning as source
from .claim import Claim, Figure, at_least, at_most
from .workers import per_seed, percents

DEEP = 0.25
"""Of the channels: cut further than is claimed."""


def one(seed: int, quick: bool) -> dict[str, float]:
    """Accuracies in percent, with and without fine-tuning, by gradient and by chance; the share of bytes left."""
    recover = dataclasses.replace(source.RECOVER, epochs=1, steps=2) if quick else source.RECOVER
    program = source.model(seed).program
    step = ts.PruneChannels(ts.Channels(0.6), source.criterion(seed, True))
    left = ts.PassManager([step], progress=False).run(program).program
    return {
        "float": 100 * source.model(seed).score,
        "gradient": source.channels(seed, True, recover),
        "chance": source.channels(seed, False, recover),
        "gradient, deep": source.channels(seed, True, recover, DEEP),
        "chance, deep": source.channels(seed, False, recover, DEEP),
        "gradient, not tuned": source.channels(seed, True, None),
        "chance, not tuned": source.channels(seed, False, None),
        "size": 100 * left.cost().parameters / program.cost().parameters,
    }


def measure(seeds: Sequence[int], quick: bool) -> list[Figure]:
    """The share of the accuracy that is kept, and the size that is left."""
    found = per_seed(seeds, quick, one)
    kept = {name: percents(found[name], found["float"]) for name in found if name not in ("float", "size")}
    note = f"float has {sum(found['float']) / len(seeds):.2f} %"
    return [
        Figure("accuracy kept with 40 % of the channels gone, fine-tuned", kept["gradient"], "%", at_least(99),
               kept["chance"], "channels by chance", note),
        Figure("the same before fine-tuning", kept["gradient, not tuned"], "%", None, kept["chance, not tuned"],
               "channels by chance"),
        Figure(f"accuracy kept with {100 - 100 * DEEP:g} % of the channels gone, fine-tuned", kept["gradient, deep"],
               "%", None, kept["chance, deep"], "channels by chance"),
        Figure("size left", found["size"], "%", at_most(60), (100.0,) * len(seeds), "unpruned"),
    ]  # fmt: skip


CLAIM = Claim(
    4,
    "Pruning ranked by gradient removes 40 % of the channels at 99 % of the accuracy; size to 60 % or less",
    "a ResNet-8 on digits with noise of deviation 0.6; first-order Taylor scores on 512 training images, six epochs "
    "of fine-tuning for both; beside it the same before fine-tuning, and with most of the channels gone",
    "longer fine-tuning, or fewer channels where the score is high",
    2,
    measure,
)
