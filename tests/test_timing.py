"""Tables of latency: what a stand-in's clock gave is marked and is set against nothing."""

from __future__ import annotations

import json

import pytest

from tersor.backends.clock import Clock
from tersor.passes.report import as_text
from tersor.timing import Latency, table

FAST = Latency(0.001, 0.002, 0.003, 7)


def slow(clock: Clock) -> Latency:
    return Latency(0.002, 0.004, 0.006, 7, clock)


def test_speed_is_against_the_first_entry() -> None:
    text = as_text(table({"a": slow(Clock.MEASURED), "b": FAST}))
    assert "2.00 ms" in text
    assert "2.00 x" in text
    assert "stand-in" not in text


@pytest.mark.parametrize("clock", [Clock.EMULATED, Clock.SIMULATED])
def test_the_time_of_a_stand_in_is_marked_and_has_no_speed(clock: Clock) -> None:
    text = as_text(table({"a": FAST, "b": slow(clock)}))
    assert f"b ({clock.value})" in text
    assert "0.50 x" not in text
    assert f"{clock.value}: time of a stand-in" in text
    assert slow(clock).speed(slow(clock)) is None
    assert json.loads(json.dumps(slow(clock).to_json()))["clock"] == clock.value


def test_modelled_times_compare_with_modelled_ones_alone() -> None:
    assert slow(Clock.MODELLED).speed(slow(Clock.MODELLED)) == 1
    assert slow(Clock.MODELLED).speed(FAST) is None
