"""Unification of axes, against index sets written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from tersor.passes.pruning.axes import Axis, Cutting, Form, Unifier, concat, coordinates, frozen, leaves, product


def unifier() -> Unifier:
    made = Unifier()
    made.blame = fx.Graph().placeholder("x")
    return made


def classes(axis: Axis) -> list[frozenset[int]]:
    """The sets of positions that go together: for each index of each leaf, where it stands."""
    found = []
    for leaf in leaves(axis):
        if frozen(leaf):
            continue
        for index in range(leaf.size):
            keep = torch.ones(leaf.size, dtype=torch.bool)
            keep[index] = False
            gone = (~Cutting({leaf: keep}).mask(axis)).nonzero().flatten().tolist()
            found.append(frozenset(gone))
    return found


def test_heads_of_a_merged_dimension() -> None:
    merged, heads, width = Axis(12), Axis(3), Axis(4)
    unifier().unify(merged, product([heads, width]))
    assert classes(merged) == [
        frozenset(range(0, 4)), frozenset(range(4, 8)), frozenset(range(8, 12)),
        *(frozenset({d, d + 4, d + 8}) for d in range(4)),
    ]  # fmt: skip


def test_rotary_halves_go_in_pairs() -> None:
    axes, width = unifier(), Axis(8)
    first, second = axes.cut(width, 4)
    axes.unify(width, concat([second, first]))
    assert classes(width) == [frozenset({d, d + 4}) for d in range(4)]


def test_interleaved_pairs_against_halves() -> None:
    axes, width = unifier(), Axis(8)
    runs = Axis(4)
    axes.unify(width, product([runs, Axis(2)]))
    assert frozenset({0, 1}) in classes(width)


def test_a_segment_inside_a_merged_dimension() -> None:
    axes, merged = unifier(), Axis(12)
    axes.unify(merged, product([Axis(3), Axis(4)]))
    head, rest = axes.cut(merged, 4)
    assert (head.size, rest.size) == (4, 8)
    assert all(len(positions) in (3, 4) for positions in classes(merged))
    assert sorted(itertools.chain(*classes(head))) == sorted(range(4))


def test_dimensions_split_elsewhere_than_merged_are_pinned() -> None:
    axes, merged = unifier(), Axis(24)
    axes.unify(merged, product([Axis(4), Axis(6)]))
    axes.unify(merged, product([Axis(6), Axis(4)]))
    assert frozen(merged)
    assert "merged" in leaves(merged)[0].pins[0].why


def test_what_is_tied_to_a_pinned_axis_is_pinned_for_its_reason() -> None:
    axes, left, right = unifier(), Axis(4), Axis(4)
    axes.pin(left, "because")
    axes.unify(right, left)
    assert frozen(right)
    assert [pin.why for pin in right.find().pins] == ["because"]


sizes = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)


@st.composite
def structures(draw: st.DrawFn, size: int, depth: int = 3) -> Axis:
    """An axis of that size, made in some way of others."""
    splits = [n for n in range(2, size) if size % n == 0]
    form = draw(st.sampled_from(list(Form))) if depth and size > 1 else Form.LEAF
    if form is Form.PRODUCT and splits:
        outer = draw(st.sampled_from(splits))
        return product([draw(structures(outer, depth - 1)), draw(structures(size // outer, depth - 1))])
    if form is Form.CONCAT:
        at = draw(st.integers(1, size - 1))
        return concat([draw(structures(at, depth - 1)), draw(structures(size - at, depth - 1))])
    return Axis(size)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([4, 6, 8, 12, 16, 24]))
def test_unified_axes_have_the_same_classes_and_each_is_a_union_of_what_it_was(data: st.DataObject, size: int) -> None:
    left, right = data.draw(structures(size)), data.draw(structures(size))
    before = [classes(left), classes(right)]
    unifier().unify(left, right)
    after = classes(left)
    assert after == classes(right)
    for classes_before in before:
        for positions in after:
            covered = [known for known in classes_before if known & positions]
            whole = frozenset().union(*covered)
            assert positions <= whole
    for leaf in leaves(left):
        for places in coordinates(left, leaf):
            assert places.shape == (size,)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([4, 6, 8, 12]))
def test_what_goes_leaves_products_and_segments_whole(data: st.DataObject, size: int) -> None:
    """Removing any indices leaves of every axis as many as its structure says, so that shapes stay right."""
    axis = data.draw(structures(size))
    axes = unifier()
    axes.unify(axis, data.draw(structures(size)))
    at = data.draw(st.integers(0, size))
    head, rest = axes.cut(axis, at)
    keep = {}
    for leaf in leaves(axis):
        if not frozen(leaf):
            mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=leaf.size, max_size=leaf.size)))
            keep[leaf] = mask
    cutting = Cutting(keep)
    mask = cutting.mask(axis)
    assert cutting.size(axis) == int(mask.sum())
    assert cutting.size(head) == int(mask[:at].sum())
    assert torch.equal(torch.cat([cutting.mask(head), cutting.mask(rest)]), mask)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 2), (2, 2, 2, 2)])
def test_coordinates_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    parts = [Axis(size) for size in shape]
    merged = product(parts)
    grid = torch.stack(torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")).reshape(len(shape), -1)
    for place, part in enumerate(parts):
        (found,) = coordinates(merged, part)
        assert torch.equal(found, grid[place])
    assert merged.size == math.prod(shape)
