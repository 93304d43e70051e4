"""Channel counts looked for by models of what they are worth and cost, which each trial makes better.

Of all that was judged so far a surrogate is fitted: what is an allotment likely to be worth, and how far is the table
of layers off? Many allotments are made of the best ones, and that is tried which promises most: how much less it is
expected to cost, times how likely it keeps the floor (Schonlau, Welch and Jones 1998; Gardner et al. 2014, "Bayesian
optimization with inequality constraints").
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .allotments import Found, Ground
from .prices import Key
from .starts import SINGLY, least
from .surrogate import Surrogate, above, improvement

_ROUNDS, _BRED = 8, 160
"""Allotments are made in so many rounds of so many each, those of a round from the best of all before."""

_PARENTS = 24
_JUDGED_PARENTS = 6
_CHANGED = (1, 1, 2, 2, 3)
"""How many axes are changed at once."""

_CROSSED, _NEAR = 0.3, 0.6
"""How often two allotments are crossed; and how often a change is to the next count rather than a far one."""

_COARSELY = 0.7
"""The share of all trials after which counts become finer."""

_HOPEFUL = 0.1
"""What is judged promises at least so much of what the best that was thought of promised before its cost was known."""

_DOUBTS = (1.0, 1.0, 2.0)
"""How many times further off than it says the model of what is worth what is taken to be, trial by trial."""

_MOST = 8.0
"""The same at most: models are doubted more where nothing promises anything any more."""

_REMEMBERED = 60
"""Estimates that say how far the next may be off: those before them knew less."""

_NEGLIGIBLE = 1e-5
"""A promise, as a share of the cost, that is not worth a trial."""


@dataclass
class ModelSearch:
    """Looks for the allotment that costs least of those that are worth `floor`; `ground` knows some that are judged.

    multiple: of channels, as the target likes them; counts are multiples of it, of its halves, down to `finest`.
    refused: what does not keep the floor after all.
    """

    ground: Ground
    floor: float
    multiple: int
    finest: int
    refused: frozenset[Key] = frozenset()
    seed: int = 0
    _levels: list[list[list[int]]] = field(init=False)
    _doubt: float = field(default=1.0, init=False)
    _begun: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._levels = [
            [self._counts(group.size, 1 if group.kind in SINGLY else step) for step in self.steps]
            for group in self.ground.axes.values()
        ]

    @property
    def steps(self) -> list[int]:
        """Multiples of channels, one after the other, from the target's own to the finest."""
        steps = [self.multiple]
        while steps[-1] // 2 >= self.finest:
            steps.append(steps[-1] // 2)
        return steps

    @property
    def _stage(self) -> int:
        """The place of the multiple that is used now: the first until most trials are gone, or none promises more."""
        after = 1 - self.ground.trials / (1 - _COARSELY) / max(1, self.ground.allowed)
        return min(len(self._levels[0]) - 1, max(self._begun, math.ceil(after * (len(self._levels[0]) - 1))))

    @staticmethod
    def _counts(size: int, step: int) -> list[int]:
        return sorted({*range(least(size, step), size, step), size})

    def best(self) -> Found | None:
        """The cheapest that was judged and keeps the floor, of equal ones the one worth most."""
        return next(iter(self._kept()), None)

    def nearly(self, slack: float) -> Found | None:
        """The cheapest that was judged and is worth up to so much less than the floor."""
        return next(iter(self._kept(slack)), None)

    def _kept(self, slack: float = 0.0) -> list[Found]:
        judged = self.ground.judged
        known = [key for key, worth in judged.items() if worth >= self.floor - slack and key not in self.refused]
        found = [found for found in map(self.ground.found, known) if math.isfinite(found.spent)]
        return sorted(found, key=lambda found: (found.spent, -found.worth))

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, trials: int) -> None:
        """Judge up to so many allotments, while any promises to be cheaper."""
        last, more = self.ground.trials - min(trials, self.ground.trials), 1.0
        while self.ground.trials > last:
            kept = self._kept()
            self._doubt = more * _DOUBTS[self.ground.trials % len(_DOUBTS)]
            key = self._next(kept) if kept else None
            if key is not None:
                self.ground.worth(key)
            elif more < _MOST:
                more *= 2
            elif self._stage < len(self._levels[0]) - 1:
                self._begun, more = self._stage + 1, 1.0
            else:
                return

    def _next(self, kept: Sequence[Found]) -> Key | None:
        """What to judge: of those thought of the one that promises most, once its cost is known."""
        best, worth, prices, error = kept[0].spent, self._worth(), self.ground.prices, None
        while True:
            if prices.errors:
                error = self._error()
            thought = self._thought_of(kept, worth, error)
            if not thought or thought[0][0] <= _NEGLIGIBLE * best:
                return None
            if not prices.exact:
                return thought[0][1]
            promised, first = thought[0]
            if prices.lookups > 0:
                prices(first)
            known = [key for _, key in thought if prices.told.get(key, math.inf) < best]
            if known:
                costs = torch.tensor([prices.told[key] for key in known], dtype=torch.float64)
                promises = (best - costs) * above(*self._doubted(worth, known), self.floor)
                if float(promises.max()) >= _HOPEFUL * promised or prices.lookups <= 0:
                    return known[int(promises.argmax())]
            if prices.lookups <= 0:
                return None

    # -- models ------------------------------------------------------------------------------------------------------

    def _points(self, keys: Sequence[Key]) -> Tensor:
        """The share that is left of each axis, float64[n, axes]."""
        return torch.tensor(keys, dtype=torch.float64) / torch.tensor(self.ground.sizes, dtype=torch.float64)

    def _worth(self) -> Surrogate:
        judged = {key: worth for key, worth in self.ground.judged.items() if math.isfinite(worth)}
        return Surrogate(self._points(list(judged)), torch.tensor(list(judged.values()), dtype=torch.float64))

    def _error(self) -> Surrogate:
        """How far estimates of costs are off, by those that were last found out."""
        errors = self.ground.prices.errors
        keys = list(errors)[-_REMEMBERED:]
        values = [errors[key] for key in keys]
        return Surrogate(self._points(keys), torch.tensor(values, dtype=torch.float64))

    def _doubted(self, worth: Surrogate, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """What is expected of allotments, and how far that may be off: further than the model says, if doubted."""
        mean, deviation = worth(self._points(keys))
        return mean, deviation * self._doubt

    def _promises(self, keys: Sequence[Key], best: float, worth: Surrogate, error: Surrogate | None) -> list[float]:
        points, prices = self._points(keys), self.ground.prices
        costs = torch.tensor([prices.estimates(key) for key in keys], dtype=torch.float64)
        less = (best - costs).clamp(min=0)
        if error is not None:
            factor, deviation = error(points)
            costs = costs * factor.exp()
            known = torch.tensor([prices.told.get(key, math.nan) for key in keys], dtype=torch.float64)
            less = improvement(costs, costs * deviation, best)
            less = torch.where(known.isnan(), less, (best - known).clamp(min=0))
        found: list[float] = (less * above(*self._doubted(worth, keys), self.floor)).tolist()
        return found

    # -- candidates --------------------------------------------------------------------------------------------------

    def _thought_of(self, kept: Sequence[Found], worth: Surrogate, error: Surrogate | None) -> list[tuple[float, Key]]:
        """Allotments that were not judged with what they promise, the most first: bred from the best (evolution)."""
        judged = [found.key for found in kept[:_JUDGED_PARENTS]]
        promises: dict[Key, float] = {}
        parents = judged
        for _ in range(_ROUNDS):
            bred = {self._bred(parents) for _ in range(_BRED)}
            new = sorted(key for key in bred if key not in promises and key not in self.ground.judged)
            if new:
                promises.update(zip(new, self._promises(new, kept[0].spent, worth, error), strict=True))
            parents = [*judged, *sorted(promises, key=lambda key: -promises[key])[:_PARENTS]]
        return [(promises[key], key) for key in sorted(promises, key=lambda key: -promises[key])]

    def _bred(self, parents: Sequence[Key]) -> Key:
        """One of the parents, or two crossed, with a few axes changed, all in one multiple."""
        draw = self._random
        counts = list(draw.choice(parents[: _PARENTS + _JUDGED_PARENTS]))
        if draw.random() < _CROSSED:
            counts = [draw.choice(pair) for pair in zip(counts, draw.choice(parents), strict=True)]
        step = self._stage
        for _ in range(draw.choice(_CHANGED)):
            axis = draw.randrange(len(counts))
            levels = self._levels[axis][step]
            place = min(range(len(levels)), key=lambda place: abs(levels[place] - counts[axis]))
            far = 1 if draw.random() < _NEAR else draw.randint(1, max(1, len(levels) // 3))
            place += far if draw.random() < 0.5 else -far
            counts[axis] = levels[min(max(place, 0), len(levels) - 1)]
        return tuple(counts)
