"""The Pareto front, against the definition written out."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tersor.pareto import pareto_front

small = st.integers(0, 3).map(float) | st.just(math.nan)


@given(st.lists(st.tuples(small, small, small), max_size=8))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float, float]]) -> None:
    found = pareto_front([point[:2] for point in points], [point[2] for point in points])
    for place, (a, b, quality) in enumerate(points):
        beaten = any(
            x <= a and y <= b and q >= quality and (x < a or y < b or q > quality)
            for x, y, q in points
            if not any(map(math.isnan, (x, y, q)))
        )
        assert found[place] is (not beaten and not any(map(math.isnan, points[place])))


def test_equal_points_are_on_the_front_together() -> None:
    assert pareto_front([(1.0,), (1.0,), (2.0,)], [5.0, 5.0, 5.0]) == (True, True, False)
