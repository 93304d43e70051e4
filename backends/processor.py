"""What this machine's processor is and can, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = _CPUINFO) -> dict[str, str]:
    """What Linux says, `model name` and `flags` for instance, of the last core where they differ; {} elsewhere."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def has_vnni(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether an x86 processor sums products of uint8 and int8 without saturation."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_flags(cpuinfo))


def has_amx(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether it multiplies 8-bit matrices in tiles, which ONNX Runtime makes use of on Linux alone."""
    return {"amx_int8", "amx_tile"} <= _flags(cpuinfo)


def _flags(cpuinfo: Path) -> set[str]:
    return set(processor(cpuinfo).get("flags", "").split())
