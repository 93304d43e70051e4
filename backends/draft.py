"""Where the files of an artifact are made before they take their names."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = ".writing-"
_FRESH = 60.0
"""Seconds in which a folder may stand without its lock: its maker is about to take it."""


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """A folder in `out`, on the same disk, that goes when all is done or has failed.

    It is locked while its process lives. Those that processes left that were killed are removed first.
    """
    for left in out.glob(f"{_PREFIX}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=_PREFIX) as name:
        handle = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield Path(name)
        finally:
            os.close(handle)


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody holds the folder's lock, which the end of a process frees however it comes."""
    with suppress(OSError):
        if time.time() - folder.stat().st_mtime < _FRESH:
            return False
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(handle)
    return False
