"""The command line: one file a group of verbs."""

from __future__ import annotations

from .app import cli, main
from .options import CHECK_FAILED, ERROR, INTERRUPTED, USAGE

__all__ = ["CHECK_FAILED", "ERROR", "INTERRUPTED", "USAGE", "cli", "main"]
