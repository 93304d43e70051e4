"""How far channels have to be cut to meet the limits, found by trying: cut untrained, measure, go up or down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from tersor.ir.errors import LoweringError, PassError
from tersor.ir.program import Program
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.manager import PassManager
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.pruning.targets import Bytes, Channels, Latency, Macs, Target

from .attempts import Attempt, Attempts, forget
from .layer_costs import layer_table
from .limits import Limits
from .plan import Plan

_LEAST = 0.03
_TRIALS = 6
_CLOSE = 0.9
"""Cutting ends where a plan takes at least so much of what it may."""

_APART = 0.02
"""Shares that are nearer are not told apart."""

_HALF = 0.5
"""The share of channels at which layers are measured a second time."""


@dataclass
class Cutter:
    """Finds plans that cut just enough.

    What goes first is what is worth least for what it saves: of time, by a table of what layers cost on the target; of
    bytes or multiply-accumulates, where that is the limit that is broken most.
    """

    attempts: Attempts
    limits: Limits
    _tables: list[tuple[Plan, LayerTable]] = field(default_factory=list)
    _program: Program | None = None

    def cut(self, route: Plan) -> Attempt | None:
        """The route with channels cut until it meets the limits, as few as possible; None where it cannot."""
        whole = self.attempts.run(route, score=False)
        if whole.measured is None:
            return None
        coarse = self.attempts.ingredients.likes.multiples.channels
        multiples = (None, *(multiple for multiple in (coarse // 2, coarse // 4) if multiple))
        plans = (dataclasses.replace(route, multiple=multiple) for multiple in multiples)
        return next(filter(None, (self._just_enough(plan, whole) for plan in plans)), None)

    def _just_enough(self, route: Plan, whole: Attempt) -> Attempt | None:
        assert whole.measured is not None
        target = self._target(whole)
        best = None
        for share in _Bracket(0.95 / self.limits.excess(whole.measured)):
            attempt = self.attempts.run(_at(route, target, share.value), score=False)
            if isinstance(attempt.failure, LoweringError):
                break
            share.excess = None if attempt.measured is None else self.limits.excess(attempt.measured)
            attempt.reason = _reason(share.excess)
            if share.excess is None or share.excess > 1:
                forget([attempt])
                continue
            forget([] if best is None else [best])
            best = attempt
            if share.excess >= _CLOSE:
                break
        return best

    def _target(self, whole: Attempt) -> Target:
        """By the limit that is broken most."""
        assert whole.measured is not None
        what = self.limits.broken(whole.measured)
        if what == "latency":
            return Latency(1.0, self.table(whole))
        return Bytes(1.0) if what == "bytes" else Macs(1.0)

    # -- the table ---------------------------------------------------------------------------------------------------

    def table(self, whole: Attempt) -> LayerTable:
        """What layers cost, from the route uncut and at half of its channels; made once a route."""
        known = next((table for plan, table in self._tables if plan == whole.plan), None)
        if known is None:
            known = self._measured(whole)
            self._tables.append((whole.plan, known))
        return known

    def _measured(self, whole: Attempt) -> LayerTable:
        assert whole.measured is not None
        half = None
        if not whole.measured.at_once:
            half = self.attempts.run(dataclasses.replace(whole.plan, prune=Channels(_HALF)), score=False)
            half.reason = half.reason or "shows what layers cost with fewer channels"
        if half is None or half.measured is None or half.result is None:
            return layer_table(self.start, whole.measured)
        table = layer_table(self.start, whole.measured, (half.result.program, half.measured))
        forget([half])
        return table

    @property
    def start(self) -> Program:
        """What is cut, with the names that it has then."""
        if self._program is None:
            manager = PassManager([Canonicalize()], progress=False, verify=False)
            self._program = manager.run(self.attempts.start).program
        return self._program


@dataclass
class _Trial:
    """A share, and how many times too much came of it: None where it cannot be cut so far."""

    value: float
    excess: float | None = None


@dataclass
class _Bracket:
    """Shares to try, each between one that is too little, or enough, and one that is too much.

    What is tried next is what would be just enough if costs fell as the share does.
    """

    first: float

    def __iter__(self) -> Iterator[_Trial]:
        low, high, share = _LEAST, 1.0, min(0.98, max(self.first, _LEAST))
        for _ in range(_TRIALS):
            trial = _Trial(round(share, 4))
            yield trial
            too_much = trial.excess is not None and trial.excess > 1
            low, high = (low, share) if too_much else (share, high)
            if high - low < _APART:
                return
            guess = share / trial.excess * 0.97 if trial.excess else math.inf
            share = guess if low < guess < high else (low + high) / 2


def _at(route: Plan, target: Target, share: float) -> Plan:
    return dataclasses.replace(route, prune=dataclasses.replace(target, share=share))


def _reason(excess: float | None) -> str:
    if excess is None:
        return ""
    return "meets the limits, untrained" if excess <= 1 else f"{excess:.3g} times what it may take"


def shrunk(plan: Plan, excess: float) -> Plan:
    """The plan cut a little further than it exceeds the limits. Raises PassError where it cuts nothing."""
    if plan.prune is None:
        raise PassError("a plan that cuts nothing cannot be cut further")
    return _at(plan, plan.prune, plan.prune.share / excess * 0.98)
