"""A claim's figures for each seed, in processes side by side, each on one thread: so sums are those of one thread."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from tersor.passes.progress import tell, track

from .claim import Values

OneSeed = Callable[[int, bool], Mapping[str, float]]
"""Figures by name of one seed, and whether the run is a quick one; a function of a module, so that it can be sent."""


def per_seed(seeds: Sequence[int], quick: bool, one: OneSeed) -> dict[str, Values]:
    """Every figure's values in the order of the seeds. A single seed stays in this process."""
    if len(seeds) == 1:
        return _together([_on_one_thread(one, seeds[0], quick)])
    workers = min(len(seeds), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    tell("seeds", 0, len(seeds), "")
    with ProcessPoolExecutor(workers, context) as pool:
        found = pool.map(partial(_on_one_thread, one), seeds, [quick] * len(seeds))
        return _together(list(track(found, "seeds", len(seeds))))


def _on_one_thread(one: OneSeed, seed: int, quick: bool) -> Mapping[str, float]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return one(seed, quick)
    finally:
        torch.set_num_threads(before)


def _together(found: Sequence[Mapping[str, float]]) -> dict[str, Values]:
    return {name: tuple(each[name] for each in found) for name in found[0]}


def differences(first: Values, second: Values) -> Values:
    """first - second, seed by seed."""
    return tuple(a - b for a, b in zip(first, second, strict=True))


def percents(part: Values, whole: Values) -> Values:
    """100 * part / whole, seed by seed."""
    return tuple(100 * a / b for a, b in zip(part, whole, strict=True))
