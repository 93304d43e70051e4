"""Verbs that look at one model: `show` and `analyze`."""

from __future__ import annotations

from pathlib import Path

import click

from tersor.ir.printer import to_text
from tersor.passes.report import quantity

from .. import analysis
from ..sources import data_or_example, load_program, parse_dynamic
from .options import as_json, dynamic_option
from .printing import cost_table, print_json, stdout


@click.command()
@click.argument("model")
@click.option("--cost", is_flag=True, help="A table of multiply-accumulates and bytes, a row a node.")
@click.option("--tensors", is_flag=True, help="List parameters and buffers too.")
@dynamic_option
@as_json
def show(model: str, cost: bool, tensors: bool, dynamic: tuple[str, ...], as_json: bool) -> None:
    """Print MODEL as a graph, with its cost."""
    program = load_program(model, parse_dynamic(dynamic))
    total = program.cost()
    summary = {
        "name": program.name,
        "stage": str(program.stage),
        "nodes": len(program.graph.nodes),
        "parameters": total.parameters,
        "parameter_bytes": total.parameter_bytes,
        "macs": total.macs,
        "peak_activation_bytes": total.peak_activation_bytes,
    }
    if as_json:
        print_json({**summary, "graph": to_text(program, tensors=tensors).splitlines()})
        return
    if cost:
        stdout().print(cost_table(program.cost().nodes))
    else:
        click.echo(to_text(program, tensors=tensors))
    click.echo(
        f"{quantity(total.parameters)} parameters in {quantity(total.parameter_bytes, 'B')}, "
        f"{quantity(total.macs)} MACs, {quantity(total.peak_activation_bytes, 'B')} of activations at the peak"
    )


@click.command()
@click.argument("quantized")
@click.option("--reference", "-f", metavar="MODEL", help="The float model that it was made from.")
@click.option("--data", "-d", metavar="MODULE:FUNCTION", help="Batches to judge on; the example by default.")
@click.option("--batches", type=click.IntRange(1), default=4, show_default=True, help="Batches used of the data.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Write .html, .svg or .png.")
@as_json
def analyze(
    quantized: str, reference: str | None, data: str | None, batches: int, picture: Path | None, as_json: bool
) -> None:
    """Show where QUANTIZED loses accuracy: each quantized node's own error, and the error it causes at the output.

    QUANTIZED is a MODEL that was quantized, as the program.tersor that `tersor compress` writes.
    """
    program = load_program(quantized)
    exact = None if reference is None else load_program(reference)
    found = analysis.analyze(program, data_or_example(program, data), reference=exact, count=batches)
    if picture is not None:
        found.save(picture)
    if as_json:
        print_json(found.to_json())
        return
    stdout().print(found)
    if picture is not None:
        click.echo(f"written to {picture}")
