"""Orders of values: what a select keeps and what a reorder sends, against the order itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.backends.hls.orders import Masks, Ring, channel_places, inside, loops, run_lanes


def spelled(nest: list[tuple[int, int]], start: int) -> list[int]:
    """The addresses of nested loops, the innermost first."""
    addresses = [start]
    for count, step in nest:
        addresses = [address + i * step for i in range(count) for address in addresses]
    return addresses


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(3)), st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(1, 3))
def test_loops_spell_transposes_and_repeats(axes: list[int], shape: list[int], repeats: int) -> None:
    order = np.arange(int(np.prod(shape))).reshape(shape).transpose(axes).repeat(repeats, 1).reshape(-1)
    nest = loops(order)
    assert nest is not None
    assert spelled(nest, int(order[0])) == order.tolist()


def test_what_is_no_nest_of_loops_is_none() -> None:
    assert loops(np.array([2, 0, 1, 5, 3, 4])) is None
    assert loops(np.array([4])) == []


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_beat_is_sent_before_it_came_or_after_it_was_written_over(data: st.DataObject) -> None:
    """The ring turn by turn, as the kernel has it: what is sent in a turn may be written over in the same."""
    taken = data.draw(st.integers(1, 12))
    sequence = np.array(data.draw(st.lists(st.integers(0, taken - 1), min_size=1, max_size=30)))
    ring = Ring.of(taken, sequence)
    slots: list[tuple[int, int]] = [(-1, -1)] * ring.size
    came, sent = 0, []
    for turn in range(ring.turns):
        if ring.lead <= turn < ring.lead + len(sequence):
            value, when = slots[sequence[turn - ring.lead] % ring.size]
            assert turn - when >= 2  # a memory gives a word some cycles after it was written
            sent.append(value)
        if turn % ring.step == 0 and came < taken:
            slots[came % ring.size] = (came, turn)
            came += 1
    assert came == taken
    assert sent == sequence.tolist()


def test_resizing_keeps_a_line_and_a_vector_for_all_pixels_itself() -> None:
    rows, width = 16, 10
    image = np.arange(rows * width).reshape(rows, width).repeat(2, 0).repeat(2, 1).reshape(-1)
    assert Ring.of(rows * width, image).size <= 2 * width
    assert Ring.of(8, np.tile(np.arange(8), 100)).size == 8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 999))
def test_masks_keep_what_they_are_made_of(rows: int, columns: int, channels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sides = [random.random(size) < 0.6 for size in (rows, columns, channels)]
    kept = (sides[0][:, None, None] & sides[1][:, None] & sides[2]).reshape(-1)
    masks = Masks.of(kept, channels)
    assert masks is not None
    assert np.array_equal(masks.kept, kept)
    assert all(len(set(part)) == 1 for part in masks.channels.reshape(-1, masks.lanes).tolist())


def test_what_no_masks_keep_is_none() -> None:
    assert Masks.of(np.array([True, False, False, True]), 2) is None


@pytest.mark.parametrize(("sequence", "lanes"), [([4, 5, 6, 7, 0, 1, 2, 3], 4), ([0, 1, 4, 5], 2), ([1, 2, 3, 0], 1)])
def test_lanes_are_what_stays_together(sequence: list[int], lanes: int) -> None:
    assert run_lanes(np.array(sequence), 8) == lanes


def test_places_of_channels() -> None:
    shuffled = np.array([[2, 0, 1], [5, 3, 4]])
    places = channel_places(shuffled)
    assert places is not None
    assert places.tolist() == [1, 2, 0]
    assert channel_places(np.array([[0, 1, 2], [4, 3, 5]])) is None


def test_the_inside_of_a_border() -> None:
    order = np.full((4, 5, 2), -1)
    order[1:3, 0:4] = 7
    assert inside(order) == (slice(1, 3), slice(0, 4))
    order[1, 1] = -1
    assert inside(order) is None
