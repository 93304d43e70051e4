"""`tersor compress` with a budget: from its options to a search, and what that found to the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from tersor.passes.report import quantity
from tersor.passes.training.options import Training

from ..compression.budget import Budget
from ..compression.compress import compress
from ..run_record import Point, RunRecord
from .printing import print_json, stdout


def search(options: dict[str, Any], budget: Budget, epochs: int | None, as_json: bool) -> None:
    """Compress, and tell what was tried and what was chosen. options: of `compress`."""
    training = None if epochs is None else Training(epochs=epochs)
    artifact = compress(budget=budget, training=training, **options)
    record = RunRecord.load(artifact.path)
    if as_json:
        print_json({"points": record.to_json()["points"], "recipe": record.recipe, "out": str(artifact.path)})
        return
    console = stdout()
    console.print(_table(record))
    for note in record.notes[:8]:
        click.echo(note)
    console.print(f"written to {artifact.path}; {Path(artifact.path) / 'recipe.yaml'} does it again", highlight=False)


def _table(record: RunRecord) -> Table:
    """A row for what was given and for each plan that was tried; the one that was chosen is marked."""
    table = Table(header_style="bold", title=f"{record.name} for {record.target}")
    table.add_column("plan")
    for heading in ("bytes", "MACs", "latency", "metric"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why")
    for point in record.points:
        table.add_row(
            f"{'* ' if point.chosen else ''}{point.name}",
            quantity(int(point.costs["bytes"]), "B") if "bytes" in point.costs else "",
            quantity(int(point.costs["macs"])) if "macs" in point.costs else "",
            _latency(point),
            "" if point.metric is None else f"{point.metric:.4g}",
            point.error.splitlines()[0] if point.error else point.reason,
            style="bold" if point.chosen else None,
        )
    return table


def _latency(point: Point) -> str:
    known = {"latency_ms", "bytes", "macs", "parameters"}
    if "latency_ms" in point.costs:
        return f"{point.costs['latency_ms']:.4g} ms{point.clock.mark}"
    return next((f"{cost:.4g} {unit}{point.clock.mark}" for unit, cost in point.costs.items() if unit not in known), "")
