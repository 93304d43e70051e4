"""Measure claims one after another, and write each entry when it is there."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module

from rich.console import Console

from tersor.passes.console import progress_bar
from tersor.passes.progress import listening, tell

from ..results import FOLDER, machine, versions
from ..trained.seeds import SEEDS
from .claim import Claim
from .ledger import Entry, Ledger
from .neighbours import Work
from .table import busy, terminal, write_page

MODULES = {
    1: "size_and_speed",
    2: "post_training",
    3: "trained_quantized",
    4: "fewer_channels",
    5: "fewer_parameters",
    6: "smaller_student",
    7: "without_data",
    8: "all_together",
    9: "detection",
}
"""The file of each claim, which is imported when it is measured."""

NUMBERS = tuple(MODULES)
_WIDTH = 150
_STEPS = ("claims", "seeds", "latency", "detectors")
"""What is told of where stderr is no terminal; passes tell of every batch."""


def claim(number: int) -> Claim:
    """One of the nine."""
    found: Claim = import_module(f"{__package__}.{MODULES[number]}").CLAIM
    return found


def run(numbers: Sequence[int] = (), quick: bool = False, fresh: bool = False, ledger: Ledger | None = None) -> None:
    """Measure the claims named, or all; print the table; write each entry as it comes, unless the run is a quick one.

    A run that was stopped goes on after its last finished claim when the same claims are asked for again; fresh: begin
    anew.
    """
    asked = sorted(set(numbers)) or list(NUMBERS)
    console = Console(width=max(_WIDTH, Console().width))
    if quick:
        console.print(terminal(list(_each(asked, quick=True))))
        return
    ledger = ledger or Ledger(FOLDER)
    left = ledger.begin(asked, fresh)
    if left != asked:
        console.print(f"going on with a run that was stopped: {len(asked) - len(left)} of {len(asked)} claims are done")
    minutes = {number: claim(number).minutes for number in left}
    console.print(f"{len(left)} claims to measure: about {sum(minutes.values()):g} minutes on two idle cores")
    for entry in _each(left, quick=False):
        ledger.add(entry)
        verdict, took = "met" if entry["met"] else "not met", entry["seconds"] / 60
        of = f"of about {minutes[entry['number']]:g}"
        console.print(f"claim {entry['number']}: {verdict}, {took:.1f} minutes {of}{busy(entry)}")
    ledger.end()
    entries = ledger.entries()
    console.print(terminal(entries[number] for number in asked))
    console.print("docs/claims.md shows these figures after `python -m benchmarks claims --page`")


def _each(numbers: Sequence[int], quick: bool) -> Iterator[Entry]:
    """Entries one by one, under a bar that tells which claim it is and how long it may take."""
    with progress_bar() as listener, listening(listener or _lines):
        for done, number in enumerate(numbers):
            given = claim(number)
            tell("claims", done, len(numbers), f"claim {number}, about {given.minutes:g} minutes on an idle machine")
            yield measured(given, quick)


def _lines(description: str, done: int, total: int | None, note: str = "", /) -> None:
    """Progress where there is no terminal for bars: a line a claim and a seed."""
    if description in _STEPS:
        print(f"{time.strftime('%H:%M:%S')} {description} {done} of {total} {note}", file=sys.stderr, flush=True)


def measured(given: Claim, quick: bool) -> Entry:
    """A claim's entry: what was claimed and measured, how, for how long, and on what."""
    begun = Work.now()
    figures = given.measure(SEEDS[:1] if quick else SEEDS, quick)
    ended = Work.now()
    return {
        "number": given.number,
        "claimed": given.claimed,
        "how": given.how,
        "met": all(figure.met is not False for figure in figures),
        "gap": given.gap,
        "seconds": ended.clock - begun.clock,
        "others": ended.others_since(begun),
        "versions": versions(),
        "machine": machine(),
        "figures": [figure.to_json() for figure in figures],
    }


def page(ledger: Ledger | None = None) -> None:
    """Write the figures into docs/claims.md."""
    write_page(list((ledger or Ledger(FOLDER)).entries().values()))
