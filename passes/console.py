"""A progress bar for passes, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .progress import Listener


@contextmanager
def progress_bar(always: bool = False) -> Iterator[Listener | None]:
    """A listener that draws a bar for each description; None where stderr is no terminal and `always` is not set.

    The bars go when all is done; where stderr is no terminal their last state is printed and stays.
    """
    console = Console(stderr=True)
    if not (always or console.is_terminal):
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def listen(description: str, done: int, total: int | None, note: str = "", /) -> None:
            if description not in tasks:
                tasks[description] = progress.add_task(description, total=total, note=note)
            progress.update(tasks[description], completed=done, total=total, note=note)

        yield listen
