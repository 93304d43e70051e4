"""Synthesis by Vitis HLS where it is installed, and its report read back."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from pathlib import Path

from tersor.ir.errors import LoweringError

from .scripts import PROJECT, SOLUTION
from .toolchain import find_vitis

_TAGS = {
    "lut": "AreaEstimates/Resources/LUT",
    "dsp": "AreaEstimates/Resources/DSP",
    "bram": "AreaEstimates/Resources/BRAM_18K",
    "interval": "PerformanceEstimates/SummaryOfOverallLatency/Interval-max",
    "latency": "PerformanceEstimates/SummaryOfOverallLatency/Worst-caseLatency",
}
"""Where the report of a top function has what is estimated here."""


@dataclass(frozen=True)
class Comparison:
    """Figures by name: what was estimated, what synthesis says, None where it says nothing."""

    estimated: dict[str, int]
    synthesized: dict[str, int | None]

    def __str__(self) -> str:
        rows = [("", "estimated", "synthesized", "ratio")]
        for name, value in self.estimated.items():
            found = self.synthesized.get(name)
            ratio = f"{found / value:.2f}" if found is not None and value else "-"
            rows.append((name, str(value), "-" if found is None else str(found), ratio))
        return "\n".join("  ".join(cell.rjust(11) for cell in row) for row in rows)


def synthesize(folder: Path, sources: Path) -> Comparison:
    """Run the script in the folder of sources. Raises MissingDependencyError, LoweringError."""
    result = subprocess.run([*find_vitis(), "build.tcl"], cwd=sources, capture_output=True, text=True, check=False)
    report = sources / PROJECT / SOLUTION / "syn" / "report" / "csynth.xml"
    if result.returncode or not report.is_file():
        raise LoweringError("Vitis HLS failed", found=(result.stdout + result.stderr).strip()[-3000:])
    compared = Comparison(_estimated(folder / "report.json"), read_report(report))
    (folder / "synthesis.json").write_text(json.dumps(asdict(compared), indent=1))
    return compared


def read_report(path: Path) -> dict[str, int | None]:
    """The figures of a synthesis report. Raises LoweringError where it is not one."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise LoweringError(f"{path} is no synthesis report: {error}") from error
    return {name: _number(root.findtext(tag)) for name, tag in _TAGS.items()}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _estimated(path: Path) -> dict[str, int]:
    document = json.loads(path.read_text())
    return {**document["total"], "interval": document["interval"], "latency": document["latency"]}
