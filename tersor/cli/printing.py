"""How the verbs print: JSON for machines, tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tersor.backends.base import LoweringReport
from tersor.passes.report import quantity

_FEW_FILES = 6
"""So many files are named; of more, only the number is."""


_NARROWEST = 80
"""A table of fewer columns cuts off its figures; a narrower terminal folds its lines."""


def stdout() -> Console:
    """Where tables are printed."""
    console = Console()
    return console if console.width >= _NARROWEST else Console(width=_NARROWEST)


def audit_table(report: LoweringReport) -> Table:
    """What runs in integer, counted by operator, and each reason why something does not."""
    result = Table(title=f"{report.target}: {report.integer_share:.1%} of MACs in integer", header_style="bold")
    for heading in ("operator", "precision", "nodes", "MACs", "why"):
        result.add_column(heading, justify="right" if heading in ("nodes", "MACs") else "left")
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in report.audit:
        groups.setdefault((row.operator, row.precision, row.reason), []).append(row.macs)
    for (operator, precision, reason), macs in sorted(groups.items(), key=lambda item: -sum(item[1])):
        result.add_row(operator, precision, str(len(macs)), quantity(sum(macs)) if sum(macs) else "", reason)
    result.caption = _files(report.files)
    return result


def _files(files: Mapping[str, int]) -> str:
    """The files with their sizes; of many, how many and how large together."""
    if len(files) > _FEW_FILES:
        return f"{len(files)} files, {quantity(sum(files.values()), 'B')}"
    return ", ".join(f"{name} {quantity(size, 'B')}" for name, size in files.items())


def cost_table(nodes: Any) -> Table:
    """A row a node: multiply-accumulates, parameters and bytes."""
    result = Table(header_style="bold")
    for heading in ("node", "MACs", "parameters", "parameter bytes", "activation bytes"):
        result.add_column(heading, justify="left" if heading == "node" else "right")
    for name, cost in nodes.items():
        numbers = (cost.macs, cost.parameters, cost.parameter_bytes, cost.activation_bytes)
        result.add_row(name, *(quantity(number) if number else "" for number in numbers))
    return result


def lowering_json(report: LoweringReport) -> dict[str, Any]:
    """What lowering reported, node by node."""
    return {
        "target": report.target,
        "integer_share": report.integer_share,
        "files": report.files,
        "notes": list(report.notes),
        "audit": [{"node": r.node, "operator": r.operator, "precision": r.precision, "macs": r.macs,
                   "reason": r.reason} for r in report.audit],
    }  # fmt: skip


def print_rows(rows: list[dict[str, str]], as_json: bool) -> None:
    """The same rows as JSON or as a table."""
    if as_json:
        print_json(rows)
        return
    result = Table(header_style="bold")
    for heading in rows[0]:
        result.add_column(heading)
    for row in rows:
        result.add_row(*map(escape, row.values()))
    stdout().print(result)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, indent=1))
