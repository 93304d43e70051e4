"""Sweeps over pass options: many tries side by side, one table, and the points that no other beats."""

from __future__ import annotations

from .settings import Grid, Setting
from .sweep import sweep
from .table import Sweep

__all__ = ["Grid", "Setting", "Sweep", "sweep"]
