"""What ONNX Runtime can use of this machine's processor."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
"""ONNX Runtime multiplies in AMX's tiles on Linux alone."""


@cache
def has_amx(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the processor multiplies 8-bit matrices in tiles, as Linux tells it; False elsewhere."""
    try:
        flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "amx_int8" in flags and "amx_tile" in flags
