"""The table claimed / measured / how: on a terminal, and as the page docs/claims.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .claim import Bound, Side
from .ledger import Entry, LedgerError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"
BEGIN, END = "<!-- figures: written by `python -m benchmarks claims --page` -->", "<!-- end of figures -->"
_QUIET = 0.25
"""Cores that others may keep busy beside a measurement."""
_VERDICT = {True: "met", False: "not met", None: ""}


def terminal(entries: Iterable[Entry]) -> Table:
    """A row a figure."""
    table = Table(title="claims", header_style="bold")
    for heading in ("", "claimed", "measured, three seeds", "without", "", "how"):
        table.add_column(heading)
    for entry in entries:
        for place, figure in enumerate(entry["figures"]):
            last = place == len(entry["figures"]) - 1
            number, how = (str(entry["number"]), entry["how"]) if place == 0 else ("", "")
            table.add_row(number, *cells(figure), how, end_section=last)
    return table


def cells(figure: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What was claimed, what was measured, what it is without the method, and whether it is met."""
    wanted, without = figure["wanted"], figure["without"]
    bound = "" if wanted is None else f": {wanted['side']} {wanted['value']:g} {figure['unit']}{_by(wanted)}"
    measured = f"{_number(figure['mean'])} {figure['unit']}, spread {_number(figure['spread'])}"
    measured += f" ({figure['note']})" if figure["note"] else ""
    absent = "" if without is None else f"{without['name']}: {_number(without['mean'])} {figure['unit']}"
    return figure["what"] + bound, measured, absent, _VERDICT[figure["met"]] + _met_anyway(figure)


def _met_anyway(figure: Mapping[str, Any]) -> str:
    """Said where the bound holds without the method as well, so that meeting it shows little."""
    wanted, without = figure["wanted"], figure["without"]
    if wanted is None or without is None or not figure["met"]:
        return ""
    bound = Bound(Side(wanted["side"]), wanted["value"])
    return ", and without it" if bound.holds(without["mean"]) else ""


def _by(wanted: Mapping[str, Any]) -> str:
    return "" if wanted["by"] == "claimed" else f" ({wanted['by']})"


def _number(value: float) -> str:
    """Three figures, and tenths of what is 100 and more: 100.8, 34.4, 0.251; 0 where only rounding is left."""
    return f"{value:.1f}" if abs(value) >= 100 else f"{round(value, 9):.3g}"


def markdown(entries: Sequence[Entry]) -> str:
    """An overview, then each claim with its figures, how they are measured, and what would close a gap."""
    lines = ["| | claimed | |", "|---|---|---|"]
    lines += [f"| {entry['number']} | {entry['claimed']} | {_VERDICT[entry['met']]} |" for entry in entries]
    for entry in entries:
        lines += ["", f"### Claim {entry['number']}", "", entry["claimed"], "", f"How: {entry['how']}", ""]
        lines += ["| claimed | measured | without | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cells(figure))} |" for figure in entry["figures"]]
        lines += ["", f"What would close the gap: {entry['gap']}"] if not entry["met"] else []
        alike = [figure["what"] for figure in entry["figures"] if _is_alike(figure)]
        lines += ["", f"On one seed or more no better than without the method: {'; '.join(alike)}"] if alike else []
        lines += ["", f"It took {entry['seconds'] / 60:.1f} minutes{busy(entry)}."]
    return "\n".join(lines)


def _is_alike(figure: Mapping[str, Any]) -> bool:
    """Whether what is claimed is not better than its absence on each of the seeds."""
    wanted, without = figure["wanted"], figure["without"]
    if wanted is None or without is None:
        return False
    sign = 1 if Side(wanted["side"]) is Side.AT_LEAST else -1
    pairs = zip(figure["measured"], without["values"], strict=False)
    return any(sign * (measured - absent) <= 0 for measured, absent in pairs)


def busy(entry: Entry) -> str:
    """What is to be said where other programs ran beside the measurements."""
    if entry["others"] < _QUIET:
        return ""
    share = f"{entry['others']:.1f} of {entry['machine']['cores']} cores"
    return f", while other programs kept {share} busy: its timings are to be run again"


def write_page(entries: Sequence[Entry], page: Path = PAGE) -> None:
    """Put the figures between the page's two marks. Raises LedgerError where it has none."""
    text = page.read_text(encoding="utf-8")
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, re.DOTALL)
    if found is None:
        raise LedgerError(f"{page}: expected the lines {BEGIN} and {END}")
    made = f"{BEGIN}\n\n{markdown(entries)}\n\n{END}"
    temporary = page.with_suffix(".tmp")
    temporary.write_text(text[: found.start()] + made + text[found.end() :], encoding="utf-8")
    temporary.replace(page)
