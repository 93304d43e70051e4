"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tersor.ir.whole_file import replacing, write_text


def test_a_file_takes_its_name_with_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"bytes")
            temporary.chmod(0o600)  # as writers do that make their own temporary file
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"bytes"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_what_was_there_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fill() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*file'"):
        fill()
    assert [(left.name, left.read_text()) for left in tmp_path.iterdir()] == [("file", "old")]
