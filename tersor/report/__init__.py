"""Reports: a compression run or a sweep as one HTML file that loads nothing."""

from __future__ import annotations

from .write import write_report

__all__ = ["write_report"]
