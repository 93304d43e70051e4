"""Verbs that set models side by side: `verify` their outputs, `bench` their latency."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..lowering import lower
from ..sources import load_data, load_program
from ..timing import measure, table, torch_threads
from ..verification import Runnable, RunnableArtifact, compare, inputs_for, open_runnable
from .options import CHECK_FAILED, as_json
from .printing import print_json, stdout


@click.command()
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
        print_json(found.to_json())
    else:
        stdout().print(found)
    worst = found.worst
    low = min_sqnr is not None and min(d.sqnr for _, d in found.outputs) < min_sqnr
    high = max_relative is not None and worst.relative > max_relative
    if low or high or worst.new_nonfinite:
        raise SystemExit(CHECK_FAILED)


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True, help="For each.")
@click.option("--target", "-t", help="Lower each MODEL that is no ONNX file and no folder to this target first.")
@as_json
def bench(models: tuple[str, ...], threads: int, seconds: float, target: str | None, as_json: bool) -> None:
    """Measure the latency of MODELS in turns; speed is against the first.

    Each is a MODEL (run by torch, or on the target named), an ONNX file or an artifact's folder. A GPU's artifacts are
    measured by the GPU's clock. What runs in an emulator or a simulation is marked, and has no speed.
    """
    with tempfile.TemporaryDirectory() as scratch, torch_threads(threads):
        sides = [_side(model, target, Path(scratch) / str(place)) for place, model in enumerate(models)]
        calls = {side.name: _call(side, sides[0], threads) for side in sides}
        clocks = {side.name: _clock(side, sides[0]) for side in sides if isinstance(side, RunnableArtifact)}
        found = measure(calls, seconds=seconds, clocks=clocks)
    worth = {side.name: side.artifact.clock for side in sides if isinstance(side, RunnableArtifact)}
    latencies = {name: replace(latency, clock=worth.get(name, latency.clock)) for name, latency in found.items()}
    if as_json:
        print_json({name: found.to_json() for name, found in latencies.items()})
    else:
        stdout().print(table(latencies))


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
