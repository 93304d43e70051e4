"""Verbs that make a smaller model: `compress` and `plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click

from tersor.passes.manager import PassManager

from ..compression.budget import Budget
from ..compression.compress import evaluator
from ..lowering import lower, resolve
from ..precision_search import LayerLatency, WeightBytes, search_precision
from ..recipe import load_recipe, read_recipe, recipe_file
from ..recording import Recorder
from ..run_record import Metric
from ..sources import SAVED, find, load_data, load_metric, load_program, parse_dynamic
from .options import as_json, dynamic_option
from .printing import audit_table, lowering_json, print_json, stdout
from .within_budget import search

_MEASURE = "measure"


@click.command()
@click.argument("model")
@click.option("--recipe", "-r", help="A YAML or TOML file, or a ready-made name; else what suits the target.")
@click.option("--target", "-t", help="See `tersor targets`; else what the recipe names, else onnxruntime.")
@click.option("--out", "-o", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--data", "-d", metavar="MODULE:FUNCTION", help="Calibration batches.")
@click.option("--batches", type=click.IntRange(1), default=64, show_default=True, help="Batches used of the data.")
@click.option("--train-data", metavar="MODULE:FUNCTION", help="Batches to train on, of inputs and targets.")
@click.option("--loss", metavar="NAME", help="MODULE:FUNCTION of outputs and targets, cross_entropy or mse.")
@click.option("--epochs", type=click.IntRange(1), help="How long each tuning trains, within a budget.")
@click.option("--checkpoint", type=click.Path(file_okay=False, path_type=Path), help="Folder to resume from.")
@click.option(
    "--metric",
    "-m",
    metavar="NAME",
    help="MODULE:FUNCTION of a program, or, with --validation, of outputs and targets.",
)
@click.option("--validation", metavar="MODULE:FUNCTION", help="Batches to judge on, that are not trained on.")
@click.option(
    "--latency",
    is_flag=False,
    flag_value=_MEASURE,
    help="A budget, as 0.5x or 8ms; without a value, measure on the target after each pass that it can run.",
)
@click.option("--bytes", "size", help="A budget, as 0.25x or 2MB.")
@click.option("--macs", help="A budget, as 0.4x or 30M.")
@click.option("--floor", help="The metric at least, as 0.97 or 0.99x of the model's own.")
@click.option("--trials", type=click.IntRange(1), help="Channel counts judged, with a floor alone and no training.")
@dynamic_option
@as_json
def compress(**options: Any) -> None:
    """Compress MODEL and lower it to a target: by a recipe, or within a budget.

    With a budget (--latency, --bytes, --macs, --floor, any mix) plans are tried on the target, tuned where there is
    training data, and judged by the metric. Writes the artifact, the compressed program (program.tersor), what does it
    again (recipe.yaml) and the record of the run (run.json), of which `tersor report` makes a page, into --out.
    """
    given = Options(**options)
    if given.budget is not None and given.recipe is not None:
        raise click.UsageError("a budget finds a recipe of its own: give --recipe, or a budget")
    if given.budget is None and given.trials is not None:
        raise click.UsageError("--trials is how long a budget is searched for: give --floor with it")
    (_search if given.budget is not None else _follow)(given)


@dataclass(frozen=True)
class Options:
    """What the command line was given."""

    model: str
    out: Path
    recipe: str | None
    target: str | None
    data: str | None
    batches: int
    train_data: str | None
    loss: str | None
    epochs: int | None
    checkpoint: Path | None
    metric: str | None
    validation: str | None
    latency: str | None
    size: str | None
    macs: str | None
    floor: str | None
    trials: int | None
    dynamic: tuple[str, ...]
    as_json: bool

    @property
    def budget(self) -> Budget | None:
        """None where no limit was given."""
        latency = None if self.latency == _MEASURE else self.latency
        limits = {"latency": latency, "bytes": self.size, "macs": self.macs, "floor": self.floor}
        return Budget(**limits) if any(limits.values()) else None

    @property
    def calibration(self) -> list[Any] | None:
        """The batches, read once."""
        return None if self.data is None else list(islice(load_data(self.data), self.batches))

    def judge(self) -> Any:
        """The metric: of a program, or of outputs and targets where there is validation data."""
        if self.metric is None or ":" not in self.metric:
            return self.metric
        return load_metric(self.metric) if self.validation is None else find(self.metric)

    def training(self) -> dict[str, Any]:
        """Training data, loss and what is held out, as `compress` and `load_recipe` take them."""
        loss = find(self.loss) if self.loss is not None and ":" in self.loss else self.loss
        return {
            "data": None if self.train_data is None else load_data(self.train_data),
            "loss": loss,
            "validation": None if self.validation is None else load_data(self.validation),
        }


def _search(given: Options) -> None:
    program = load_program(given.model, parse_dynamic(given.dynamic))
    options = {
        "model": program,
        "target": given.target or "onnxruntime",
        "calibration": given.calibration,
        "metric": given.judge(),
        "checkpoint": given.checkpoint,
        "out": given.out,
        **given.training(),
        **({} if given.trials is None else {"trials": given.trials}),
    }
    assert given.budget is not None
    search(options, given.budget, given.epochs, given.as_json)


def _follow(given: Options) -> None:
    """Run a recipe, the target's own unless one is named."""
    read = {} if given.recipe is None else read_recipe(given.recipe)
    named = read.get("target") if isinstance(read, Mapping) else None
    target = given.target or (named if isinstance(named, str) else "onnxruntime")
    backend = resolve(target)
    recipe = given.recipe or backend.preferences.recipe
    file = recipe_file(recipe)
    program = load_program(given.model, parse_dynamic(given.dynamic))
    training = given.training()
    metric = given.judge() if given.validation is not None else None
    passes = load_recipe(file, given.calibration, metric=metric, teacher=program, **training)
    evaluate = evaluator(given.judge(), training["validation"])
    name = None if given.metric is None else Metric(given.metric.rpartition(":")[2])
    recorder = Recorder(backend if given.latency == _MEASURE else None, evaluate, name)
    progress = False if given.as_json else None
    result = PassManager(passes, checkpoint=given.checkpoint, progress=progress, watch=recorder).run(program)
    artifact = lower(result.program, backend, given.out)
    result.program.save(given.out / SAVED)
    settings = {"model": given.model, "recipe": recipe, "target": target, "data": given.data or "none"}
    text = file.read_text(encoding="utf-8")
    recorder.record(result, program, artifact, recipe=text, settings=settings).save(given.out)
    if given.as_json:
        lowering = lowering_json(artifact.report)
        print_json({"report": result.report.to_json(), "lowering": lowering, "out": str(given.out)})
        return
    console = stdout()
    console.print(result.report)
    console.print(audit_table(artifact.report))
    console.print(f"written to {given.out}", highlight=False)


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
