"""What a pipeline says of its run: a row a pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tersor.ir.program import Program

_WIDE = 120
"""The columns of text from which on the notes fit beside the figures."""


@dataclass(frozen=True)
class ReportRow:
    """One pass: what it promised, what it did, what it cost, how far the outputs moved.

    sqnr: dB against the outputs before the pass; sqnr_total: against the outputs of the program first given.
    None where outputs were not compared. macs, bytes and parameters are those of the program after the pass; seconds
    are the pass's own, without the checks. options: the pass's fields as text.
    """

    name: str
    promise: str
    modified: bool
    nodes: int
    macs: int
    bytes: int
    seconds: float
    sqnr: float | None = None
    sqnr_total: float | None = None
    notes: tuple[str, ...] = ()
    parameters: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def done(self) -> str:
        """What the pass did, in words."""
        return "; ".join(self.notes) or ("" if self.modified or not self.promise else "nothing to do")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ReportRow:
        """The inverse of `to_json`."""
        numbers = {key: _number(data[key]) for key in ("sqnr", "sqnr_total")}
        return cls(**{**data, **numbers, "notes": tuple(data["notes"])})

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinity as text, which JSON lacks."""
        texts = {key: _text(value) for key, value in (("sqnr", self.sqnr), ("sqnr_total", self.sqnr_total))}
        return {**asdict(self), **texts, "notes": list(self.notes)}


@dataclass(frozen=True)
class Report:
    """The rows of one run, the first for the program as it was given."""

    rows: tuple[ReportRow, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [row.to_json() for row in self.rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table where the console is wide, else a narrow one with what each pass did below it."""
        wide = options.max_width >= _WIDE
        yield self._table(wide)
        if not wide:
            yield from (Text(f"{row.name}: {row.done}") for row in self.rows if row.done)

    def _table(self, wide: bool) -> Table:
        table = Table(header_style="bold", box=HEAVY_HEAD if wide else SIMPLE_HEAD, pad_edge=wide)
        table.add_column("pass", no_wrap=True)
        if wide:
            table.add_column("promise", no_wrap=True)
        for heading in ("nodes", "MACs", "size", "SQNR", "SQNR total", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        if wide:
            table.add_column("what it did", ratio=1)
        for row in self.rows:
            cells = [
                str(row.nodes), quantity(row.macs), quantity(row.bytes, "B"), decibels(row.sqnr),
                decibels(row.sqnr_total), f"{row.seconds:.2f} s",
            ]  # fmt: skip
            table.add_row(row.name, *((row.promise, *cells, row.done) if wide else cells))
        return table

    def __str__(self) -> str:
        return as_text(self)


@dataclass(frozen=True)
class PipelineResult:
    """What `PassManager.run` returns.

    program: what came out. report: a row a pass.
    """

    program: Program
    report: Report


def as_text(renderable: Any, width: int = 160) -> str:
    """A rich renderable as plain text."""
    console = Console(width=width, no_color=True, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip("\n")


def quantity(value: float, unit: str = "") -> str:
    """`4.09 G`, `25.6 M`, `512`; with a unit, `25.6 MB`."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def decibels(value: float | None) -> str:
    """`35.2 dB`, `equal` for infinity, blank for None."""
    if value is None:
        return ""
    return "equal" if value == math.inf else f"{value:.1f} dB"


def _text(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else repr(value)


def _number(value: float | str | None) -> float | None:
    return float(value) if value is not None else None
