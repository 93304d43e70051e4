"""Verbs that list what there is: `targets` and `passes`."""

from __future__ import annotations

import click

from tersor.backends.registry import TARGETS
from tersor.passes.registry import PASSES

from ..recipe import ready_recipes
from .options import as_json
from .printing import print_rows


@click.command()
@as_json
def targets(as_json: bool) -> None:
    """List the targets."""
    rows = []
    for name in TARGETS.names():
        kind = TARGETS.find(name)
        rows.append({"target": name, "what": kind.summary, "missing": kind.missing() or ""})
    print_rows(rows, as_json)


@click.command()
@as_json
def passes(as_json: bool) -> None:
    """List the passes and ready-made recipes."""
    rows = []
    for name in PASSES.names():
        kind = PASSES.find(name)
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append({"pass": name, "promise": str(kind.promise), "what": summary})
    print_rows(rows, as_json)
    if not as_json:
        click.echo(f"recipes: {', '.join(ready_recipes())}")
