"""Progress: listeners, and the bar on stderr."""

from __future__ import annotations

import pytest

from tersor.passes.console import progress_bar
from tersor.passes.progress import listening, track

Event = tuple[str, int, int | None]


def test_items_pass_through_unheard() -> None:
    assert list(track("abc", "letters")) == ["a", "b", "c"]


def test_the_total_is_known_from_the_items_or_told_or_unknown() -> None:
    heard: list[Event] = []
    with listening(lambda *event: heard.append(event)):
        list(track([1], "sized"))
        list(track(iter([1]), "unsized"))
        list(track(iter([1]), "told", 5))
    list(track([1], "after"))
    assert heard == [("sized", 1, 1), ("unsized", 1, None), ("told", 1, 5)]


def test_an_inner_block_without_a_listener_keeps_the_outer_one() -> None:
    outer: list[Event] = []
    inner: list[Event] = []
    with listening(lambda *event: outer.append(event)):
        with listening(None):
            list(track([1], "kept"))
        with listening(lambda *event: inner.append(event)):
            list(track([1], "own"))
    assert [event[0] for event in outer] == ["kept"]
    assert [event[0] for event in inner] == ["own"]


def test_the_bar_is_drawn_on_stderr_only_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as listener:
        assert listener is None
    with progress_bar(always=True) as listener, listening(listener):
        list(track(range(4), "calibrating"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "calibrating" in captured.err
    assert "4/4" in captured.err
