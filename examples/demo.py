"""Train on digits, compress through the passes that exist, lower to every target, print one table.

Run it with `make demo`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

import tersor as ts
from tersor.backends.clock import Clock
from tersor.backends.registry import TARGETS
from tersor.ir.errors import MissingDependencyError
from tersor.passes.report import quantity
from tersor.timing import measure, torch_threads, warning

from . import digits


@dataclass(frozen=True)
class Entry:
    """A row of the table: something that classifies, and what it costs."""

    name: str
    run: Callable[[Tensor], Tensor]
    bytes: int
    integer_share: float | None = None
    clock: Clock = Clock.MEASURED


def main(out: str = "build/demo") -> None:
    """Run the demo; artifacts are written below `out`."""
    console = Console()
    console.print("training a small residual network on handwritten digits ...")
    data = digits.load()
    model = digits.train(data)
    example = data.test_images[:1]
    program = ts.trace(model, (example,), dynamic={"x": {0: "batch"}})

    result = ts.PassManager([ts.Quantize(ts.INT8, calibration=data.batches())]).run(program)
    console.print(result.report)

    with torch_threads(1):
        entries = [_float(program)]
        for target in TARGETS.names():
            try:
                entries += _lowered(target, program, result.program, Path(out), example)
            except MissingDependencyError as error:
                console.print(f"{target} does not run here: {error}")
        console.print(_table(entries, data, example))
    console.print(f"artifacts are in {out}/", highlight=False)


def _float(program: ts.Program) -> Entry:
    cost = program.cost()
    return Entry("float, torch", program, cost.parameter_bytes)


def _lowered(target: str, before: ts.Program, after: ts.Program, out: Path, example: Tensor) -> list[Entry]:
    """Both programs on a target: the float one, where the target takes it, as its own yardstick."""
    takes_float = all(before.stage in step.takes for step in TARGETS.find(target)().passes())
    entries = []
    for kind, program in [("float", before)] * takes_float + [("int8", after)]:
        artifact = ts.lower(program, target=target, out=out / target / kind)
        artifact.run(example)
        size = sum(artifact.report.files.values())
        share = artifact.report.integer_share
        entries.append(Entry(f"{kind}, {target}", artifact.run, size, share, artifact.clock))
    return entries


def _table(entries: list[Entry], data: digits.Digits, example: Tensor) -> Table:
    with torch.no_grad():
        scores = [digits.accuracy(entry.run(data.test_images), data.test_labels) for entry in entries]
        latencies = measure({entry.name: partial(entry.run, example) for entry in entries}, seconds=0.5)
    latencies = {e.name: replace(latencies[e.name], clock=e.clock) for e in entries}
    title = "digits: one image, one thread; speed against float"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, caption=warning(e.clock for e in entries))
    table.add_column("what", no_wrap=True)
    for heading in ("accuracy", "size", "int8", "latency", "speed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry, score in zip(entries, scores, strict=True):
        found = latencies[entry.name]
        yardstick = f"float, {entry.name.split(', ')[1]}"
        speed = found.speed(latencies[yardstick if yardstick in latencies else entries[0].name])
        table.add_row(
            f"{entry.name}{entry.clock.mark}", f"{score:.2%}", quantity(entry.bytes, "B"),
            "" if entry.integer_share is None else f"{entry.integer_share:.0%}",
            f"{found.median * 1e3:.2f} ms", "" if speed is None else f"{speed:.2f} x",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main(*sys.argv[1:])
