"""From a folder to its page."""

from __future__ import annotations

from pathlib import Path

from tersor.ir.errors import ArchiveError
from tersor.ir.whole_file import write_text

from ..run_record import NAME, RunRecord
from ..sweeps.outcome import is_sweep
from ..sweeps.table import Sweep
from .run_page import run_page
from .sweep_page import sweep_page


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run's or a sweep's folder; `report.html` in the folder unless told. Returns its path.

    Raises ArchiveError where the folder holds neither, or what it holds is malformed; OSError where the page cannot be
    written, and then leaves none.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ArchiveError(f"there is no {folder}", expected="the folder of a compression run or of a sweep")
    inside = folder if folder.is_dir() else folder.parent
    sweep = folder.is_dir() and is_sweep(folder) and not (folder / NAME).exists()
    text = sweep_page(Sweep.load(folder)) if sweep else run_page(RunRecord.load(folder))
    path = inside / "report.html" if out is None else Path(out)
    write_text(path, text)
    return path
