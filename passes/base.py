"""What a pass is: a frozen dataclass whose fields are its options, and a contract that the manager checks."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from tersor.ir.errors import PassError
from tersor.ir.program import HistoryEntry, Program
from tersor.ir.stage import ALL_STAGES, Stage


class Promise(enum.Enum):
    """What a pass says about the numbers.

    EXACT: the outputs stay, up to float rounding. APPROXIMATE: they change, and the manager reports by how much.
    TRAINED: the parameters were learned, so outputs are judged by a metric and not by the difference.
    """

    EXACT = "exact"
    APPROXIMATE = "approximate"
    TRAINED = "trained"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    program: the one given, or a new one. modified: whether anything changed. notes: sentences for the report.
    """

    program: Program
    modified: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """A graph transformation.

    The program given to `run` belongs to the pass, which may edit its graph; its tensors are shared with other
    programs, so a pass replaces them (`program.set_tensor`) and never writes into them. New nodes are made with
    `program.call`, which gives them a shape and the origin of the node that they stand for.

    Contract, as class attributes:
        takes    the stages at which the pass can run
        gives    the stage that it leads to; None where the stage stays
        promise  what it says about the numbers
    """

    takes: ClassVar[frozenset[Stage]] = ALL_STAGES
    gives: ClassVar[Stage | None] = None
    promise: ClassVar[Promise] = Promise.EXACT

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Transform the program. Raises PassError, with the node, where it cannot."""

    def __call__(self, program: Program) -> Program:
        """Run on a copy, set the stage, note it in the history and verify. The given program stays as it was."""
        result = self.run(program.copy())
        return finished(self, result).program.verify()

    @property
    def name(self) -> str:
        """The class's name as recipes write it: `FoldBatchNorm` is `fold_batch_norm`."""
        return snake_case(type(self).__name__)

    def expand(self) -> tuple[Pass, ...]:
        """The passes that this one stands for; itself, unless it is a sequence of others."""
        return (self,)

    def options(self) -> dict[str, str]:
        """The fields as text, for reports and history; data is named by its type."""
        return {field.name: _text(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Sequence(Pass):
    """A pass that stands for others in order. The manager runs, checks and reports each of them."""

    def run(self, program: Program) -> PassResult:
        """Run the passes one after another."""
        modified = False
        notes: list[str] = []
        for step in self.expand():
            result = finished(step, step.run(program))
            program, modified = result.program, modified or result.modified
            notes += result.notes
        return PassResult(program, modified, tuple(notes))

    @abstractmethod
    def expand(self) -> tuple[Pass, ...]:
        """The passes in order."""


def finished(step: Pass, result: PassResult) -> PassResult:
    """Close a pass's run: set the stage that it gives, drop what nobody reads, note it in the history.

    Raises PassError where `result` is no PassResult.
    """
    if not isinstance(result, PassResult):
        hint = "end run with: return PassResult(program, modified=...)"
        raise PassError("run did not return a result", expected="a PassResult", found=repr(result), hint=hint)
    program = result.program
    if step.gives is not None:
        program.stage = step.gives
    if result.modified:
        program.graph.eliminate_dead_code()
        program.remove_unused_tensors()
        program.changed()
    if step.expand() == (step,):
        program.recorded(HistoryEntry(step.name, step.options(), result.notes, result.modified))
    return result


P = TypeVar("P", bound=Pass)


def on_the_cpu(run: Callable[[P, Program], PassResult]) -> Callable[[P, Program], PassResult]:
    """Let a pass's `run` see the program on the CPU; what it changed goes back to where the program was.

    For passes that read no data: what they decide and store is then the same bits wherever the program is, and their
    arithmetic may mix tensors of the program with others.
    """

    @functools.wraps(run)
    def there(self: P, program: Program) -> PassResult:
        home = program.device
        if home.type == "cpu":
            return run(self, program)
        result = run(self, program.to("cpu"))
        return dataclasses.replace(result, program=result.program.to(home) if result.modified else program)

    return there


def snake_case(name: str) -> str:
    """`FoldBatchNorm` to `fold_batch_norm`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)
    if isinstance(value, tuple | list) and all(isinstance(item, bool | int | float | str) for item in value):
        return ", ".join(map(str, value))
    described = getattr(type(value), "__str__", None) is not object.__str__
    return str(value) if described and len(str(value)) < 80 else type(value).__name__
