"""The points that no other point beats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[Sequence[float]], quality: Sequence[float]) -> tuple[bool, ...]:
    """For each point, whether no other is at least as good in everything and better in something.

    costs: what is to shrink, a tuple a point, all of one length. quality: what is to grow. A point with NaN in it is on
    no front and beats nothing. Points that are equal in everything are on the front together.
    """
    points = [(*(-cost for cost in tuple(row)), value) for row, value in zip(costs, quality, strict=True)]
    usable = [point for point in points if not any(map(math.isnan, point))]
    return tuple(
        not any(map(math.isnan, point)) and not any(_beats(other, point) for other in usable) for point in points
    )


def _beats(left: Sequence[float], right: Sequence[float]) -> bool:
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))
