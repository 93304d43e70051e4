"""Passes in the middle of a run: prune, then quantize, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.ir.errors import TrainingError
from tersor.ir.program import Program

from ..base import Pass
from ..manager import PassManager


@dataclass(frozen=True)
class At:
    """A pass that runs before a step: the number of a step, or a share of the run where `when` is a float."""

    when: int | float
    step: Pass

    def __post_init__(self) -> None:
        fits = self.when >= 0 and (isinstance(self.when, int) or self.when < 1)
        if not fits or isinstance(self.when, bool):
            raise TrainingError("not a time in a run", expected="a step >= 0, or a share in [0, 1)", found=self.when)

    def due(self, steps: int) -> int:
        """The step, of so many, before which it runs."""
        return self.when if isinstance(self.when, int) else int(self.when * steps)

    def __str__(self) -> str:
        return f"{self.step.name} at {self.when}"


def require_same_stage(events: Sequence[At]) -> None:
    """Raises TrainingError for a pass that leads to another stage, which only `TrainQuantized` says that it gives."""
    for event in events:
        if any(step.gives is not None for step in event.step.expand()):
            raise TrainingError(
                f"{event} leads to another stage", hint="TrainQuantized(events=...) quantizes on the way"
            )


class Agenda:
    """What is still to run, in order; the passes go through a pass manager, so each one's contract is checked."""

    def __init__(self, events: Sequence[At]) -> None:
        self.waiting = list(events)
        self.notes: list[str] = []

    def is_due(self, step: int, steps: int) -> bool:
        """Whether a pass is to run before this step."""
        return any(event.due(steps) <= step for event in self.waiting)

    def take(self, program: Program, step: int, steps: int) -> Program:
        """The program after every pass that is due."""
        due = [event for event in self.waiting if event.due(steps) <= step]
        self.waiting = [event for event in self.waiting if event.due(steps) > step]
        due.sort(key=lambda event: event.due(steps))
        result = PassManager([event.step for event in due], progress=False).run(program)
        self.notes += [f"step {step}: {row.name}: {row.done}" for row in result.report.rows[1:] if row.modified]
        return result.program

    def skip_to(self, step: int, steps: int) -> None:
        """Forget what ran before a step, for a run that goes on there."""
        self.waiting = [event for event in self.waiting if event.due(steps) >= step]

    def check(self, program: Program, steps: int) -> None:
        """Refuse an order that cannot run, before anything is trained. Raises PassError or TrainingError."""
        late = [event for event in self.waiting if event.due(steps) >= steps]
        if late:
            raise TrainingError(f"{late[0]} is after the last step", expected=f"a step below {steps}")
        order = sorted(self.waiting, key=lambda event: event.due(steps))
        PassManager([event.step for event in order]).check_order(program.stage)
