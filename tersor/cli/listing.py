"""Verbs that list what there is: `targets` and `passes`."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from typing import Any

import click

from tersor.backends.registry import TARGETS
from tersor.ir.errors import TersorError
from tersor.passes.base import Pass
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
        try:
            kind = TARGETS.find(name)
            rows.append({"target": name, "what": kind.summary, "missing": kind.missing() or ""})
        except TersorError as error:  # another package's target that is broken hides no other
            rows.append({"target": name, "what": "", "missing": error.what})
    print_rows(rows, as_json)


@click.command()
@click.argument("name", required=False)
@as_json
def passes(name: str | None, as_json: bool) -> None:
    """List the passes and ready-made recipes; or say what the pass NAME does, and its options."""
    if name is not None:
        _describe(name, as_json)
        return
    rows = []
    for known in PASSES.names():
        try:
            kind = PASSES.find(known)
            rows.append({"pass": known, "promise": str(kind.promise), "what": _summary(kind)})
        except TersorError as error:
            rows.append({"pass": known, "promise": "", "what": error.what})
    print_rows(rows, as_json)
    if not as_json:
        click.echo(f"recipes: {', '.join(ready_recipes())}")


def _describe(name: str, as_json: bool) -> None:
    kind = PASSES.find(name)
    options = [
        {"option": field.name, "type": str(field.type), "default": _default(field)}
        for field in dataclasses.fields(kind)
    ]
    if not as_json:
        click.echo(f"{inspect.getdoc(kind)}\n")
    print_rows(options, as_json)


def _summary(kind: type[Pass]) -> str:
    """The first paragraph of what a pass says of itself."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _default(field: dataclasses.Field[Any]) -> str:
    """As a recipe would write it; data and objects are not written there."""
    value = field.default
    if value is dataclasses.MISSING:
        value = None if field.default_factory is dataclasses.MISSING else field.default_factory()
    return str(value.value if isinstance(value, enum.Enum) else value)
