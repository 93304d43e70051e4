"""The command line. Exit codes: 0 all well, 1 a check did not hold, 2 wrong usage, 3 an error, 130 interrupted."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tersor.backends.base import LoweringReport
from tersor.backends.registry import TARGETS
from tersor.ir.errors import RecipeError, TersorError
from tersor.ir.printer import to_text
from tersor.passes.manager import PassManager
from tersor.passes.registry import PASSES
from tersor.passes.report import quantity

from . import __version__, analysis
from .lowering import lower, resolve
from .precision_search import LayerLatency, WeightBytes, search_precision
from .recipe import load_recipe, ready_recipes
from .sources import data_or_example, load_data, load_program, parse_dynamic
from .timing import measure, table, torch_threads
from .verification import Runnable, RunnableArtifact, compare, inputs_for, open_runnable

CHECK_FAILED, USAGE, ERROR, INTERRUPTED = 1, 2, 3, 130

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
dynamic_option = click.option(
    "--dynamic", multiple=True, metavar="INPUT:DIM=NAME", help="A dimension that changes, as x:0=batch. Repeatable."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tersor")
def cli() -> None:
    """Compress models: trace, run passes, lower to hardware, compare, measure.

    MODEL is `module:function`, whose function returns (model, inputs), an ONNX file, or a program that was saved as a
    .tersor file.
    """


@cli.command()
@click.argument("model")
@click.option("--recipe", "-r", help="A YAML or TOML file, or a ready-made name; else what suits the target.")
@click.option("--target", "-t", default="onnxruntime", show_default=True, help="See `tersor targets`.")
@click.option("--out", "-o", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@click.option("--data", "-d", metavar="MODULE:FUNCTION", help="Calibration batches.")
@click.option("--batches", type=click.IntRange(1), default=64, show_default=True, help="Batches used of the data.")
@click.option("--checkpoint", type=click.Path(file_okay=False, path_type=Path), help="Folder to resume from.")
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
    dynamic: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run a recipe on MODEL and lower the result to a target.

    Writes the artifact and the compressed program (program.tersor) into the folder given by --out.
    """
    backend = resolve(target)
    calibration = None if data is None else list(islice(load_data(data), batches))
    passes = load_recipe(recipe or backend.recipe, calibration)
    program = load_program(model, parse_dynamic(dynamic))
    manager = PassManager(passes, checkpoint=checkpoint, progress=False if as_json else None)
    result = manager.run(program)
    artifact = lower(result.program, backend, out)
    result.program.save(out / "program.tersor")
    if as_json:
        _print_json({"report": result.report.to_json(), "lowering": _lowering_json(artifact.report), "out": str(out)})
        return
    console = Console()
    console.print(result.report)
    console.print(_audit_table(artifact.report))
    console.print(f"written to {out}", highlight=False)


@cli.command()
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
        _print_json({**summary, "graph": to_text(program, tensors=tensors).splitlines()})
        return
    if cost:
        Console().print(_cost_table(program.cost().nodes))
    else:
        click.echo(to_text(program, tensors=tensors))
    click.echo(
        f"{quantity(total.parameters)} parameters in {quantity(total.parameter_bytes, 'B')}, "
        f"{quantity(total.macs)} MACs, {quantity(total.peak_activation_bytes, 'B')} of activations at the peak"
    )


@cli.command()
@click.argument("left")
@click.argument("right")
@click.option("--data", "-d", metavar="MODULE:FUNCTION", help="Compare on its first batch instead of the example.")
@click.option("--seed", type=int, default=0, help="Compare on random inputs of this seed; 0 takes the example if any.")
@click.option("--layers", is_flag=True, help="Compare each layer whose name both have.")
@click.option("--min-sqnr", type=float, help="Fail (exit 1) below this many dB.")
@click.option("--max-relative", type=float, help="Fail (exit 1) above this relative difference.")
@as_json
def verify(
    left: str,
    right: str,
    data: str | None,
    seed: int,
    layers: bool,
    min_sqnr: float | None,
    max_relative: float | None,
    as_json: bool,
) -> None:
    """Compare the outputs of LEFT and RIGHT on the same inputs.

    Each is a MODEL, an ONNX file or an artifact's folder. LEFT is the reference.
    """
    sides = open_runnable(left), open_runnable(right)
    batch = None if data is None else next(iter(load_data(data)), None)
    found = compare(*sides, inputs_for(*sides, batch, seed), layers)
    if as_json:
        _print_json(found.to_json())
    else:
        Console().print(found)
    worst = found.worst
    low = min_sqnr is not None and min(d.sqnr for _, d in found.outputs) < min_sqnr
    high = max_relative is not None and worst.relative > max_relative
    if low or high or worst.new_nonfinite:
        raise SystemExit(CHECK_FAILED)


@cli.command()
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
        _print_json(found.to_json())
        return
    Console().print(found)
    if picture is not None:
        click.echo(f"written to {picture}")


@cli.command()
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
        _print_json({"layers": layers, "sqnr": found.sqnr, "cost": found.cost, "unit": found.unit, "out": str(out)})
        return
    click.echo(f"{found.text(out.name)}written to {out}")


@cli.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True, help="For each.")
@click.option("--target", "-t", help="Lower each MODEL that is no ONNX file and no folder to this target first.")
@as_json
def bench(models: tuple[str, ...], threads: int, seconds: float, target: str | None, as_json: bool) -> None:
    """Measure the latency of MODELS in turns; speed is against the first.

    Each is a MODEL (run by torch, or on the target named), an ONNX file or an artifact's folder. A GPU's artifacts are
    measured by the GPU's clock.
    """
    with tempfile.TemporaryDirectory() as scratch, torch_threads(threads):
        sides = [_side(model, target, Path(scratch) / str(place)) for place, model in enumerate(models)]
        calls = {side.name: _call(side, sides[0], threads) for side in sides}
        clocks = {side.name: _clock(side, sides[0]) for side in sides if isinstance(side, RunnableArtifact)}
        latencies = measure(calls, seconds=seconds, clocks=clocks)
    if as_json:
        _print_json({name: found.to_json() for name, found in latencies.items()})
    else:
        Console().print(table(latencies))


@cli.command()
@as_json
def targets(as_json: bool) -> None:
    """List the targets."""
    rows = []
    for name in TARGETS.names():
        kind = TARGETS.find(name)
        rows.append({"target": name, "what": kind.summary, "missing": kind.missing() or ""})
    _print_rows(rows, as_json)


@cli.command()
@as_json
def passes(as_json: bool) -> None:
    """List the passes and ready-made recipes."""
    rows = []
    for name in PASSES.names():
        kind = PASSES.find(name)
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append({"pass": name, "promise": str(kind.promise), "what": summary})
    _print_rows(rows, as_json)
    if not as_json:
        click.echo(f"recipes: {', '.join(ready_recipes())}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; never returns."""
    console = Console(stderr=True)
    try:
        code = cli.main(list(arguments) if arguments is not None else None, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = USAGE
    except RecipeError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = USAGE
    except (TersorError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = ERROR
    except (KeyboardInterrupt, click.Abort):
        console.print("interrupted; nothing was left half-written", style="yellow")
        code = INTERRUPTED
    sys.exit(code or 0)


def _side(model: str, target: str | None, folder: Path) -> Runnable:
    if target is None or Path(model).is_dir() or Path(model).suffix == ".onnx":
        return open_runnable(model)
    return RunnableArtifact(lower(load_program(model), target, folder), f"{model} on {target}")


def _clock(side: RunnableArtifact, first: Runnable) -> Callable[[], float]:
    return partial(side.latency, inputs_for(first, side))


def _call(side: Runnable, first: Runnable, threads: int) -> Any:
    set_threads = getattr(side, "set_threads", None)
    if set_threads is not None:
        set_threads(threads)
    return partial(side.run, inputs_for(first, side))


def _audit_table(report: LoweringReport) -> Table:
    """What runs in integer, counted by operator, and each reason why something does not."""
    result = Table(title=f"{report.target}: {report.integer_share:.1%} of MACs in integer", header_style="bold")
    for heading in ("operator", "precision", "nodes", "MACs", "why"):
        result.add_column(heading, justify="right" if heading in ("nodes", "MACs") else "left")
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in report.audit:
        groups.setdefault((row.operator, row.precision, row.reason), []).append(row.macs)
    for (operator, precision, reason), macs in sorted(groups.items(), key=lambda item: -sum(item[1])):
        result.add_row(operator, precision, str(len(macs)), quantity(sum(macs)) if sum(macs) else "", reason)
    for name, size in report.files.items():
        result.caption = f"{result.caption + ', ' if result.caption else ''}{name} {quantity(size, 'B')}"
    return result


def _cost_table(nodes: Any) -> Table:
    result = Table(header_style="bold")
    for heading in ("node", "MACs", "parameters", "parameter bytes", "activation bytes"):
        result.add_column(heading, justify="left" if heading == "node" else "right")
    for name, cost in nodes.items():
        numbers = (cost.macs, cost.parameters, cost.parameter_bytes, cost.activation_bytes)
        result.add_row(name, *(quantity(number) if number else "" for number in numbers))
    return result


def _lowering_json(report: LoweringReport) -> dict[str, Any]:
    return {
        "target": report.target,
        "integer_share": report.integer_share,
        "files": report.files,
        "notes": list(report.notes),
        "audit": [{"node": r.node, "operator": r.operator, "precision": r.precision, "macs": r.macs,
                   "reason": r.reason} for r in report.audit],
    }  # fmt: skip


def _print_rows(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    result = Table(header_style="bold")
    for heading in rows[0]:
        result.add_column(heading)
    for row in rows:
        result.add_row(*row.values())
    Console().print(result)


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=1))
