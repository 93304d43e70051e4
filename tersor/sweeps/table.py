"""The table of a sweep: every try with its figures, the Pareto front marked, as text, CSV, JSON and picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from tersor.passes.report import as_text, decibels, quantity
from tersor.passes.training.options import Better

from ..pareto import pareto_front
from ..timing import warning
from ..typed_json import encode
from .outcome import Definition, Folder, Outcome

_LONGEST, _WIDE = 160, 120


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep.

    definition: all its tries. rows: those that are finished, in the order in which they were given. folder: where it
    stands.
    """

    definition: Definition
    rows: tuple[Outcome, ...]
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """Read what a sweep has finished by now. Raises ArchiveError where the folder holds none."""
        store = Folder(Path(folder))
        definition = store.definition()
        found = []
        for planned in definition.points:
            outcome = store.outcome(planned.key)
            if outcome is not None:
                named = Outcome(**{**vars(outcome), "name": planned.name, "options": planned.options})
                found.append(named)
        return cls(definition, tuple(found), Path(folder))

    @property
    def pending(self) -> int:
        """How many tries are not finished."""
        return len(self.definition.points) - len(self.rows)

    @property
    def quality_name(self) -> str:
        """What tries are judged by."""
        return "SQNR" if self.definition.metric is None else self.definition.metric.name

    def quality(self, row: Outcome) -> float | None:
        """The metric of a try, or its SQNR in dB; None where it failed."""
        return row.sqnr if self.definition.metric is None else row.metric

    @property
    def front(self) -> tuple[Outcome, ...]:
        """The tries that no other beats in the costs and in quality together, in the order of the first cost."""
        usable = [row for row in self.rows if self._judged(row)]
        lower = self.definition.metric is not None and self.definition.metric.better is Better.LOWER
        quality = [value for row in usable if (value := self.quality(row)) is not None]
        costs = [[row.costs[cost] for cost in self.definition.costs] for row in usable]
        on = pareto_front(costs, [-value for value in quality] if lower else quality)
        found = [row for row, inside in zip(usable, on, strict=True) if inside]
        return tuple(sorted(found, key=lambda row: row.costs[self.definition.costs[0]]))

    def _judged(self, row: Outcome) -> bool:
        return not row.error and self.quality(row) is not None and all(c in row.costs for c in self.definition.costs)

    # -- forms -------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN and infinity as text, which JSON lacks."""
        front = {row.key for row in self.front}
        rows = [{**encode(row), "on_front": row.key in front} for row in self.rows]
        return {"name": self.definition.name, "costs": list(self.definition.costs), "quality": self.quality_name,
                "pending": self.pending, "rows": rows}  # fmt: skip

    def to_csv(self) -> str:
        """A line a try: name, a column an option, a column a cost, quality, the front, the error."""
        options = list(dict.fromkeys(option for row in self.rows for option in row.options))
        costs = list(dict.fromkeys(cost for row in self.rows for cost in row.costs))
        front = {row.key for row in self.front}
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["name", *options, *costs, "latency_clock", "metric", "sqnr_db", "on_front", "seconds", "error"])
        for row in self.rows:
            clock = row.clock.value if "latency_ms" in row.costs else ""
            figures = [_number(row.costs.get(cost)) for cost in costs]
            judged = (_number(row.metric), _number(row.sqnr), "yes" if row.key in front else "no")
            values = [row.name, *(row.options.get(option, "") for option in options), *figures]
            lines.writerow([*values, clock, *judged, f"{row.seconds:.2f}", row.error])
        return text.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write the table (`.csv`, `.json`), a page (`.html`) or a picture of the front (`.svg`, `.png`).

        Raises RecipeError for another suffix, MissingDependencyError for a PNG without matplotlib.
        """
        from tersor.ir.whole_file import write_text

        from ..report.sweep_picture import save_sweep

        path = Path(path)
        if path.suffix == ".csv":
            write_text(path, self.to_csv())
        elif path.suffix == ".json":
            write_text(path, json.dumps(self.to_json(), indent=1) + "\n")
        else:
            save_sweep(self, path)
        return path

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A table with the costs that differ; where the console is narrow, with those alone that the front is of."""
        yield self._table(self._shown_costs() if options.max_width >= _WIDE else self.definition.costs)

    def _shown_costs(self) -> tuple[str, ...]:
        every = dict.fromkeys((*self.definition.costs, *(cost for row in self.rows for cost in row.costs)))
        seen = {cost: {row.costs[cost] for row in self.rows if cost in row.costs} for cost in every}
        return tuple(cost for cost in every if cost in self.definition.costs or len(seen[cost]) > 1)

    def _table(self, costs: Sequence[str]) -> Table:
        front = {row.key for row in self.front}
        clocks = [row.clock for row in self.rows if "latency_ms" in row.costs]
        table = Table(title=f"{self.definition.name}: {self._summary()}", header_style="bold", caption=warning(clocks))
        table.add_column("", no_wrap=True)
        table.add_column("try", ratio=1)
        for heading in (self.quality_name, *(COST_NAMES.get(cost, cost) for cost in costs), "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            if row.error:
                error = row.error if len(row.error) <= _LONGEST else f"{row.error[: _LONGEST - 1]}…"
                table.add_row("x", f"{row.name}: {error}", *[""] * (len(costs) + 2), style="red")
                continue
            figures = [cost_text(cost, row) for cost in costs]
            mark, style = ("●", "bold") if row.key in front else ("", "")
            table.add_row(mark, row.name, self.quality_text(row), *figures, f"{row.seconds:.1f} s", style=style)
        return table

    def quality_text(self, row: Outcome) -> str:
        """The metric or SQNR in words."""
        value = self.quality(row)
        if self.definition.metric is None or value is None:
            return decibels(value)
        return "NaN" if math.isnan(value) else f"{value:.5g}"

    def _summary(self) -> str:
        failed = sum(bool(row.error) for row in self.rows)
        parts = [f"{len(self.rows)} tries", f"{len(self.front)} on the front (●)"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{self.pending} to go"] if self.pending else []
        return ", ".join(parts)

    def __str__(self) -> str:
        return as_text(self)


COST_NAMES = {"activation_bytes": "activations", "bytes": "size", "file_bytes": "files", "latency_ms": "latency",
             "macs": "MACs"}  # fmt: skip


def cost_text(cost: str, row: Outcome) -> str:
    """A cost in words; blank where it is not known."""
    value = row.costs.get(cost)
    if value is None:
        return ""
    if cost == "latency_ms":
        return f"{value:.3g} ms{row.clock.mark}"
    return quantity(value, "B" if cost.endswith("bytes") else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"
