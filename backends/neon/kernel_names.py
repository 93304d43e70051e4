"""The kernels of a library under names of their own: two models that different versions made link into one program.

All identifiers that the kernels' headers declare end with a digest of all their sources, by a header that all include.
Kernels of one version have the same names in all libraries and are shared; others never stand in for them.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from .toolchain import KERNELS

NAMES = "tersor_names.h"
"""Empty among the kernels of this package, which are compiled as they are for tests and counts."""

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DIRECTIVE = re.compile(r"^\s*#(?:.*\\\n)*.*$", re.MULTILINE)


def write_kernels(folder: Path) -> list[Path]:
    """Every source and header of the kernels, and their names."""
    written = []
    for source in _sources():
        written.append(folder / source.name)
        written[-1].write_text(_header() if source.name == NAMES else source.read_text())
    return written


@cache
def digest() -> str:
    """Of all sources of the kernels, ten hexadecimal digits."""
    sums = hashlib.sha256()
    for source in _sources():
        sums.update(f"{source.name}\0{source.read_text()}\0".encode())
    return sums.hexdigest()[:10]


def _sources() -> list[Path]:
    return sorted(path for path in KERNELS.iterdir() if path.suffix in (".c", ".h"))


def _header() -> str:
    text = "".join(path.read_text() for path in _sources() if path.suffix == ".h")
    declared = _DIRECTIVE.sub("", _COMMENT.sub("", text))
    names = sorted(set(re.findall(r"\btersor_[a-z0-9_]+\b", declared)))
    lines = ["/* Names that only kernels made from the same sources have: the digest at their end is of these. */"]
    lines += [f"#define {name} {name}_{digest()}" for name in names]
    return "\n".join(["#ifndef TERSOR_NAMES_H", "#define TERSOR_NAMES_H", "", *lines, "", "#endif", ""])
