"""The verb that tries many settings: `sweep`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tersor.ir.errors import RecipeError

from ..sources import load_program, parse_dynamic
from ..sweeps import Sweep
from ..sweeps import sweep as run_sweep
from ..sweeps.sweep_file import load_sweep
from .options import ERROR, as_json, dynamic_option
from .printing import print_json, stdout


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("model", required=False)
@click.option("--out", "-o", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--data", "-d", metavar="MODULE:FUNCTION", help="Calibration batches.")
@click.option("--metric", "-m", metavar="MODULE:FUNCTION", help="Takes a program, gives a number.")
@click.option("--target", "-t", help="Where each try is lowered to. See `tersor targets`.")
@click.option("--workers", "-w", type=click.IntRange(1), help="Processes; one a core by default.")
@click.option("--retry", is_flag=True, help="Run those again that failed.")
@click.option("--keep", is_flag=True, help="Keep each try's program and artifact.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Write .html, .svg or .png too.")
@dynamic_option
@as_json
def sweep(
    file: Path,
    model: str | None,
    out: Path,
    workers: int | None,
    retry: bool,
    keep: bool,
    picture: Path | None,
    dynamic: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Run every try of FILE on MODEL, side by side, and print one table with the Pareto front marked.

    What is finished stands in the folder given by --out: the same command goes on where a stopped one was. The table
    is written there as sweep.csv, and as a page with the front plotted as report.html. Where every try failed, the exit
    code is 3.
    """
    asked = load_sweep(file)
    asked = replace(asked, **{name: value for name, value in given.items() if value is not None})
    if (model or asked.model) is None:
        raise RecipeError("no model to sweep", hint="name it behind the file, or as `model` in it")
    name, dims = str(model or asked.model), parse_dynamic(dynamic or asked.dynamic)
    try:
        found = run_sweep(
            load_program(name, dims) if dims else name, asked.tries, out=out, data=asked.data, batches=asked.batches,
            metric=asked.metric, better=asked.better, target=asked.target, latency=asked.latency, costs=asked.costs,
            workers=workers, keep=keep, retry=retry, progress=False if as_json else None,
        )  # fmt: skip
    except KeyboardInterrupt:
        kept = Sweep.load(out)
        click.echo(f"{len(kept.rows)} tries are finished, {kept.pending} to go: the same command goes on", err=True)
        raise
    if picture is not None:
        found.save(picture)
    if as_json:
        print_json({**found.to_json(), "out": str(out)})
    else:
        stdout().print(found)
        click.echo(f"written to {out}")
    if all(row.error for row in found.rows):
        raise SystemExit(ERROR)
