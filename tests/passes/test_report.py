"""The report as text and as data."""

from __future__ import annotations

import json
import math

import pytest

from tersor.passes.report import Report, ReportRow, as_text, decibels, quantity

GIVEN = ReportRow("given", "", False, 12, 4_090_000_000, 102_400_000, 0.0)
QUANTIZED = ReportRow("calibrate", "approximate", True, 40, 512, 25_600, 1.256, 35.24, 35.2, ("mse", "8 batches"))
IDLE = ReportRow("canonicalize", "exact", False, 12, 512, 25_600, 0.001, math.inf, -math.inf)
REPORT = Report((GIVEN, IDLE, QUANTIZED))


def test_text_has_a_line_a_pass() -> None:
    lines = [line for line in str(REPORT).splitlines() if "│" in line]
    assert len(lines) == 3
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells[0][:5] == ["given", "", "12", "4.09 G", "102 MB"]
    assert cells[1][5] == "equal"
    assert cells[1][8] == "nothing to do"
    assert cells[2] == [
        "calibrate", "approximate", "40", "512", "25.6 kB", "35.2 dB", "35.2 dB", "1.26 s", "mse; 8 batches",
    ]  # fmt: skip
    assert as_text(REPORT) == str(REPORT)
    assert "\x1b" not in str(REPORT)


def test_json_holds_everything() -> None:
    data = json.loads(json.dumps(REPORT.to_json(), allow_nan=False))
    assert tuple(ReportRow.from_json(row) for row in data) == REPORT.rows


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "", "0"), (999, "B", "999 B"), (1000, "", "1 k"), (25_557_032, "", "25.6 M"), (4.09e9, "B", "4.09 GB")],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (math.inf, "equal"), (35.25, "35.2 dB"), (-math.inf, "-inf dB")]
)
def test_decibels(value: float | None, text: str) -> None:
    assert decibels(value) == text
