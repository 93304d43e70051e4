"""Where a search for channel counts begins.

A start is a way to share out what goes: by what channels cost on the target, by multiply-accumulates, by parameters,
the same share everywhere, or by what the metric loses when each layer alone is cut. Each is followed down to where the
metric reaches the floor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tersor.ir.errors import PassError
from tersor.passes.pruning.criteria import Magnitude
from tersor.passes.pruning.flow import Kind
from tersor.passes.pruning.prune_channels import PruneChannels, Ranking
from tersor.passes.pruning.targets import Channels, Latency, Macs, Parameters, Target

from .allotments import Found, Ground
from .prices import Key, up

_SHARES = (0.75, 0.5, 0.25)
"""What is left of one axis alone, to see what the metric loses by it."""

_BISECTIONS = 5

_CHOICE = 8
"""How many counts an axis has on average, at least, if multiples are as coarse as the target likes them."""

SINGLY = (Kind.HEADS, Kind.EXPERTS)
"""Axes whose indices are counted one by one, whatever multiple the target likes."""


@dataclass
class Starts:
    """Ways to share out what goes, each cut to where what is left is still worth `floor`.

    multiple: of channels, as the target likes them; counts are multiples of a half of it, of a half of that, down to
    `finest`, where else an axis has little choice.
    """

    ground: Ground
    floor: float
    multiple: int
    finest: int

    def __post_init__(self) -> None:
        sizes = self.ground.sizes
        while self.multiple // 2 >= self.finest and sum(sizes) < _CHOICE * self.multiple * len(sizes):
            self.multiple //= 2

    def found(self) -> Iterator[Found]:
        """One of each way to share out, cut to where the floor is reached, as long as half of the trials are left."""
        left = self.ground.trials // 2
        for path in self._paths():
            if self.ground.trials < left:
                return
            found = self._furthest(path)
            if found is not None:
                yield found

    def _paths(self) -> Iterator[Callable[[float], Key]]:
        table = self.ground.table
        for target in (Latency(1.0, table), Macs(1.0), Parameters(1.0)):
            yield partial(self._allotted, target, Ranking.COST)
        yield partial(self._allotted, Channels(1.0), Ranking.LOCAL)
        if len(_SHARES) * len(self.ground.axes) <= self.ground.trials // 3:
            cuts = self._by_sensitivity()
            yield lambda share: self.ground.key(dict(cuts[: round((1 - share) * len(cuts))]))

    def _allotted(self, target: Target, ranking: Ranking, share: float) -> Key:
        step = PruneChannels(
            dataclasses.replace(target, share=share), Magnitude(normalized=True), ranking, multiple=self.multiple
        )
        return self.ground.key(step.allot(self.ground.start))

    def _furthest(self, path: Callable[[float], Key]) -> Found | None:
        """By bisection; the metric is taken to fall along the path."""
        low, high, best = 0.0, 1.0, None
        for _ in range(_BISECTIONS):
            if self.ground.trials <= 0:
                break
            share = (low + high) / 2
            try:
                key = path(share)
            except PassError:  # it cannot be cut so far
                low = share
                continue
            if self.ground.worth(key) >= self.floor:
                high, best = share, key
            else:
                low = share
        return None if best is None else self.ground.found(best)

    def _by_sensitivity(self) -> list[tuple[str, int]]:
        """Cuts of single axes, by name and count left: those first that lose least of the metric for what they save."""
        cuts = [cut for name in self.ground.axes for cut in self._of_one(name)]
        return [(name, count) for _, name, count in sorted(cuts, key=lambda cut: cut[0])]

    def _of_one(self, name: str) -> Iterator[tuple[float, str, int]]:
        """Cuts of one axis, the widest first, and what each loses for what it saves: no less than those before it."""
        whole, step = self.ground.sizes, 1 if self.ground.axes[name].kind in SINGLY else self.multiple
        top, total = self.ground.worth(whole), self.ground.prices.estimates(whole)
        before, lost, saved, rate = self.ground.axes[name].size, 0.0, 0.0, -math.inf
        for count in self._stages(before, step):
            cut = self.ground.key({name: count})
            now, less = max(lost, top - self.ground.worth(cut)), total - self.ground.prices.estimates(cut)
            rate = max(rate, (now - lost) / max(less - saved, 1e-12 * total))
            for between in range(before - 1, count - 1, -1):
                if between % step == 0 or between == count:
                    yield rate, name, between
            before, lost, saved = count, now, less

    @staticmethod
    def _stages(size: int, step: int) -> list[int]:
        """The counts at which the metric is looked at, each below the one before."""
        counts = {max(least(size, step), up(round(size * share), step)) for share in _SHARES}
        return sorted((count for count in counts if count < size), reverse=True)


def least(size: int, step: int) -> int:
    """How many indices of an axis stay at least."""
    return min(size, max(step, up(math.ceil(size * PruneChannels.least), step)))
