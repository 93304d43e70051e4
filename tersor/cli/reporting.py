"""The verb that makes a page of a run or a sweep: `report`."""

from __future__ import annotations

from pathlib import Path

import click

from ..report import write_report
from .options import as_json
from .printing import print_json


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="The file; FOLDER/report.html unless told."
)
@as_json
def report(folder: Path, out: Path | None, as_json: bool) -> None:
    """Write one HTML page about the compression run or the sweep in FOLDER.

    It shows before and after, accuracy and latency by step, each layer's bytes, work, error, zeros and precision, what
    was tried, the recipe and the graph. The page stands alone: it loads nothing and runs no script.
    """
    path = write_report(folder, out)
    if as_json:
        print_json({"out": str(path)})
    else:
        click.echo(f"written to {path}")
