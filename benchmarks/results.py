"""Rows of figures: printed as a table, written as JSON beside the versions and the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tersor import environment
from tersor.backends import processor

FOLDER = Path(__file__).parent / "results"
_PACKAGES = ("tersor", "torch", "onnx", "onnxruntime", "transformers", "numpy")


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is how much better ours is than the peer's, above 1 or not; `goal` says what was wanted."""

    what: str
    ours: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    ratio: float | None = None
    goal: str = ""
    note: str = ""


def publish(name: str, rows: Sequence[Row], quick: bool) -> None:
    """Print the rows; write results/NAME.json unless the run was a quick one, whose figures are not to be quoted."""
    table = Table(title=name, header_style="bold")
    for heading in ("what", "ours", "peer", "ratio", "goal", "note"):
        table.add_column(heading, justify="left" if heading in ("what", "goal", "note") else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.what, f"{row.ours:.4g} {row.unit}", _peer(row), ratio, row.goal, row.note)
    Console(width=150).print(table)
    if not quick:
        FOLDER.mkdir(exist_ok=True)
        data = {"versions": versions(), "machine": machine(), "rows": [_json(row) for row in rows]}
        (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def _peer(row: Row) -> str:
    """The peer's figure and whose it is."""
    if row.peer is None:
        return f"{row.peer_name}: absent" if row.peer_name else ""
    return f"{row.peer:.4g} ({row.peer_name})" if row.peer_name else f"{row.peer:.4g}"


def _json(row: Row) -> dict[str, object]:
    data = asdict(row)
    peer_name = data.pop("peer_name")
    data["peer"] = {"name": peer_name, "figure": row.peer} if peer_name else None
    return data


def machine() -> dict[str, object]:
    """The processor, and whether it has the 8-bit dot products that integer speed hangs on."""
    fields = processor.processor()
    flags = fields.get("flags", "").split()
    name = fields.get("model name", platform.processor())
    bfloat16 = "amx_bf16" in flags or "avx512_bf16" in flags
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "avx2": "avx2" in flags,
        "vnni": processor.has_vnni(),
        "bfloat16": bfloat16,
    }


def versions() -> dict[str, str]:
    """Of Python and of what the figures depend on."""
    found = environment.versions(_PACKAGES)
    return {"python": found["python"], **{package: found.get(package, "absent") for package in _PACKAGES}}
