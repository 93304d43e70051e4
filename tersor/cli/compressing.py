"""Verbs that make a smaller model: `compress` and `plan`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click
from rich.console import Console

from tersor.passes.manager import PassManager

from ..lowering import lower, resolve
from ..precision_search import LayerLatency, WeightBytes, search_precision
from ..recipe import load_recipe, recipe_file
from ..recording import Recorder
from ..run_record import Metric
from ..sources import SAVED, load_data, load_metric, load_program, parse_dynamic
from .options import as_json, dynamic_option
from .printing import audit_table, lowering_json, print_json


@click.command()
@click.argument("model")
@click.option("--recipe", "-r", help="A YAML or TOML file, or a ready-made name; else what suits the target.")
@click.option("--target", "-t", default="onnxruntime", show_default=True, help="See `tersor targets`.")
@click.option("--out", "-o", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--data", "-d", metavar="MODULE:FUNCTION", help="Calibration batches.")
@click.option("--batches", type=click.IntRange(1), default=64, show_default=True, help="Batches used of the data.")
@click.option("--checkpoint", type=click.Path(file_okay=False, path_type=Path), help="Folder to resume from.")
@click.option("--metric", "-m", metavar="MODULE:FUNCTION", help="Takes a program, gives a number; after each pass.")
@click.option("--latency", is_flag=True, help="Measure the latency on the target after each pass that it can run.")
@dynamic_option
@as_json
def compress(
    model: str,
    recipe: str | None,
    target: str,
    out: Path,
    data: str | None,
    batches: int,
    checkpoint: Path | None,
    metric: str | None,
    latency: bool,
    dynamic: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run a recipe on MODEL and lower the result to a target.

    Writes the artifact, the compressed program (program.tersor) and the record of the run (run.json), of which `tersor
    report` makes a page, into the folder given by --out.
    """
    backend = resolve(target)
    calibration = None if data is None else list(islice(load_data(data), batches))
    recipe = recipe or backend.preferences.recipe
    file = recipe_file(recipe)
    passes = load_recipe(file, calibration)
    program = load_program(model, parse_dynamic(dynamic))
    recorder = Recorder(
        backend if latency else None,
        None if metric is None else load_metric(metric),
        None if metric is None else Metric(metric.rpartition(":")[2]),
    )
    manager = PassManager(passes, checkpoint=checkpoint, progress=False if as_json else None, watch=recorder)
    result = manager.run(program)
    artifact = lower(result.program, backend, out)
    result.program.save(out / SAVED)
    settings = {
        "model": model,
        "recipe": recipe,
        "target": target,
        "data": data or "none",
    }
    text = file.read_text(encoding="utf-8")
    recorder.record(result, program, artifact, recipe=text, settings=settings).save(out)
    if as_json:
        print_json({"report": result.report.to_json(), "lowering": lowering_json(artifact.report), "out": str(out)})
        return
    console = Console()
    console.print(result.report)
    console.print(audit_table(artifact.report))
    console.print(f"written to {out}", highlight=False)


@click.command()
@click.argument("model")
@click.option("--data", "-d", metavar="MODULE:FUNCTION", required=True, help="Calibration batches.")
@click.option("--batches", type=click.IntRange(1), default=16, show_default=True, help="Batches used of the data.")
@click.option("--sqnr", type=float, default=30.0, show_default=True, help="The budget: dB at the outputs.")
@click.option("--cost", type=click.Choice(["bytes", "latency"]), default="bytes", show_default=True)
@click.option("--target", "-t", default="onnxruntime", show_default=True, help="Where latency is measured.")
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The plan's file.")
@dynamic_option
@as_json
def plan(
    model: str,
    data: str,
    batches: int,
    sqnr: float,
    cost: str,
    target: str,
    out: Path,
    dynamic: tuple[str, ...],
    as_json: bool,
) -> None:
    """Choose each layer's precision: the cheapest that keeps the outputs of MODEL within a budget.

    Writes a plan to read, edit and replay, by a recipe with `apply_precision: {plan: plan.yaml}`.
    """
    judge = WeightBytes() if cost == "bytes" else LayerLatency(resolve(target))
    calibration = list(islice(load_data(data), batches))
    found = search_precision(load_program(model, parse_dynamic(dynamic)), calibration, sqnr=sqnr, cost=judge)
    found.save(out)
    if as_json:
        layers = {name: precision.value for name, precision in found.layers.items()}
        print_json({"layers": layers, "sqnr": found.sqnr, "cost": found.cost, "unit": found.unit, "out": str(out)})
        return
    click.echo(f"{found.text(out.name)}written to {out}")
