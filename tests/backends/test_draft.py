"""Folders for drafts: what a killed process left goes, what a living one holds stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tersor.backends.draft import draft_folder


def old(folder: Path) -> Path:
    """Make the folder look as if it had stood for an hour."""
    folder.mkdir(exist_ok=True)
    (folder / "half").write_text("written")
    found = folder.stat()
    os.utime(folder, (found.st_atime, found.st_mtime - 3600))
    return folder


def test_a_draft_goes_however_it_ends(tmp_path: Path) -> None:
    with draft_folder(tmp_path) as draft:
        (draft / "file").write_text("text")
    with pytest.raises(OSError, match="full"), draft_folder(tmp_path):
        raise OSError("the disk is full")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    old(tmp_path / ".writing-left")
    with draft_folder(tmp_path) as draft:
        assert list(tmp_path.iterdir()) == [draft]


def test_the_draft_of_a_living_process_stays_however_old(tmp_path: Path) -> None:
    with draft_folder(tmp_path) as held:
        old(held)
        with draft_folder(tmp_path):
            assert (held / "half").exists()


def test_a_fresh_folder_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    (tmp_path / ".writing-new").mkdir()
    with draft_folder(tmp_path):
        assert (tmp_path / ".writing-new").exists()
