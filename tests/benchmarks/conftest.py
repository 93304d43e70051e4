"""Benchmarks are run from the root of the repository and are no part of the package: the tests find them there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
