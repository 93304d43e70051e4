"""Calibration data where none was given: read from training data, made from the model, or its example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tersor.ir.errors import TrainingError
from tersor.ir.example import example_of
from tersor.ir.program import Program
from tersor.passes.training.batches import ModelInputs
from tersor.passes.training.distill_data_free import DistillDataFree
from tersor.passes.training.options import Optimizer, Schedule, Training
from tersor.passes.training.randomness import Stream

COUNT = 16
"""Batches of training data that calibrate, and that a criterion looks at."""

_SYNTHESIS = DistillDataFree(
    samples=64,
    size=32,
    synthesis=Training(
        steps=100, optimizer=Optimizer.ADAM, learning_rate=0.1, schedule=Schedule.COSINE, progress=False
    ),
)


@dataclass(frozen=True)
class Seeded:
    """The first batches, in the order that they have with generators at seed 0, however often they are read."""

    batches: Iterable[Any]
    count: int = COUNT

    def __iter__(self) -> Iterator[Any]:
        with Stream.seeded(0).used():
            found = list(islice(self.batches, self.count))
        return iter(found)


def from_training(program: Program, data: Iterable[Any]) -> list[Any]:
    """What the model is called with in the first batches of training data."""
    return list(ModelInputs(program, Seeded(data)))


def synthesized(program: Program) -> list[Any]:
    """Inputs that a program with batch norms takes for its data, in batches, the same each time. Raises TrainingError.

    Yin et al. 2020, arXiv:1912.08795; see `DistillDataFree`.
    """
    return list(_SYNTHESIS.synthesize(program).split(_SYNTHESIS.size))


def can_synthesize(program: Program) -> bool:
    """Whether a program remembers enough of its data: batch norms, and one float input."""
    from tersor.passes.training.synthesis import Memory

    try:
        Memory(program)
    except TrainingError:
        return False
    return True


def example_batch(program: Program) -> Any:
    """The inputs that a program was traced with, as a batch of calibration data; made up where it has none."""
    inputs = iter(example_of(program))
    args = program.signature.args.unflatten(inputs)
    kwargs = program.signature.kwargs.unflatten(inputs)
    named = dict(zip(program.signature.parameters, args, strict=False))
    return {**named, **kwargs} if kwargs else tuple(args)


KINDS = ("synthesized", "example")
"""What a recipe may name as its calibration data where none is given."""


def made(kind: str, program: Program) -> list[Any]:
    """Calibration data of one of these kinds."""
    assert kind in KINDS
    return synthesized(program) if kind == "synthesized" else [example_batch(program)]
