"""Precision layer by layer: what keeps a floor, and what fits in so many bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tersor.backends.clock import Clock
from tersor.ir.errors import MissingDependencyError, PassError
from tersor.passes.quantization.calibration_data import Replay
from tersor.passes.quantization.precision_plan import Precision
from tersor.passes.training.options import Better

from ..precision_search import LayerLatency, WeightBytes, most_exact, plan_of, search_precision, weigh
from .attempts import Attempts
from .measurement import Measured
from .plan import Plan

_BLOCKS = {8: Precision.INT8_WEIGHTS, 4: Precision.INT4_WEIGHTS}
_TRIES = 3


@dataclass
class LayerPrecision:
    """Plans with the precision of each layer chosen, for targets that run floats. notes: why there are none."""

    attempts: Attempts
    baseline: Measured
    better: Better
    notes: list[str]

    @property
    def integer(self) -> Precision:
        """What the target takes for layers in integer."""
        symmetric = self.attempts.ingredients.likes.scheme.activation.symmetric
        return Precision.INT8_SYMMETRIC if symmetric else Precision.INT8

    def keeping(self, floor: float) -> Iterator[Plan]:
        """The layers that cost the metric most stay float."""
        evaluate, given = self.attempts.gauge.evaluate, self.attempts.ingredients
        if not given.likes.floats or evaluate is None or self.better is Better.LOWER:
            return
        timed = (a.measured for a in self.attempts.tried if a.measured is not None and a.measured.latency is not None)
        measured = any(found.clock is Clock.MEASURED for found in timed)
        try:
            found = search_precision(
                self.attempts.start,
                given.calibration,
                metric=evaluate,
                drop=(self.baseline.metric or 0.0) - floor,
                cost=LayerLatency(self.attempts.gauge.target) if measured else None,
                precisions=(Precision.FLOAT32, self.integer),
            )
        except (MissingDependencyError, PassError) as error:
            self.notes.append(f"no mix of float and integer layers keeps the floor: {error.what}")
            return
        yield Plan(precision=found)

    def within(self, limit: float) -> Iterator[Plan]:
        """The most exact mix of floats, integers and weights in blocks that takes at most `limit` bytes in all.

        What is no weight of a layer takes what it takes: that is found by looking at the plan's own bytes.
        """
        likes = self.attempts.ingredients.likes
        blocks = tuple(_BLOCKS[bits] for bits in likes.block_bits if bits in _BLOCKS)
        if not likes.floats or not blocks:
            return
        try:
            data = Replay(self.attempts.ingredients.calibration)
            options = weigh(self.attempts.start, data, (Precision.FLOAT32, self.integer, *blocks), WeightBytes())
            room = limit
            for _ in range(_TRIES):
                plan = Plan(precision=plan_of(options, most_exact(options, room), WeightBytes()))
                attempt = self.attempts.run(plan, score=False)
                if attempt.measured is None:
                    return
                if attempt.measured.bytes <= limit:
                    yield plan
                    return
                attempt.reason = f"{attempt.measured.bytes / limit:.3g} times the bytes that it may take"
                room -= attempt.measured.bytes - limit
        except (MissingDependencyError, PassError) as error:
            self.notes.append(f"no mix of precisions fits: {error.what}")
