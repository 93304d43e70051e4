"""Compression in steps, each followed by tuning: prune a little, train, look, go on or stop."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tersor.ir.errors import ArchiveError, PassError
from tersor.ir.program import Program
from tersor.ir.sparsity import NM
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, finished
from ..checkpoint import plain, write_json
from ..progress import track
from ..sparsity.patterns import density_of, with_density
from ..sparsity.sparsify import Sparsify
from .prune_channels import PruneChannels, Reference


class Pace(enum.Enum):
    """How what is left falls over the steps.

    CONSTANT: by the same factor each time. CUBIC: fast at first and gently at the end, 1 - (1 - t)^3 of the way (Zhu
    and Gupta 2017, arXiv:1710.01878).
    """

    CONSTANT = "constant"
    CUBIC = "cubic"

    def left(self, final: float, step: int, steps: int) -> float:
        """The share left after a step, from 1 to `final`."""
        if self is Pace.CONSTANT:
            return float(final ** (step / steps))
        return float(final + (1 - final) * (1 - step / steps) ** 3)


@dataclass(frozen=True)
class StepRecord:
    """One step as it went: the share that was left, and the score after tuning."""

    left: float
    score: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Gradually(Pass):
    """Prune or sparsify in steps, with a tuning pass after each.

    compress: the pass with its final target: `PruneChannels(Macs(0.3))` or `Sparsify(NM(2, 4))`.
    tune: any pass that recovers, such as `Finetune(batches, loss)`; None tunes nothing.
    steps, pace: how many, and how fast.
    evaluate: a score of a program, higher is better; it is recorded after every step.
    floor: where a step's score is below, its program is thrown away, and the one before is the result.
    checkpoint: a folder; a run that is started again there, with the same program and options, goes on after its last
        step.

    Raises PassError where a floor has nothing to measure it, or the first step is already below it.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.TRAINED

    compress: PruneChannels | Sparsify = field(default_factory=PruneChannels)
    tune: Pass | None = None
    steps: int = 4
    pace: Pace = Pace.CUBIC
    evaluate: Callable[[Program], float] | None = None
    floor: float | None = None
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PassError("steps is a count", expected="at least 1", found=self.steps)
        if self.floor is not None and self.evaluate is None:
            raise PassError("a floor needs a score to compare with", hint="evaluate=lambda program: ...")

    def run(self, program: Program) -> PassResult:
        """Go down until it ends or the score falls below the floor."""
        store = None if self.checkpoint is None else _Store(Path(self.checkpoint), _fingerprint(self, program))
        reference = Reference.of(program, self.compress) if isinstance(self.compress, PruneChannels) else None
        current, records = (program, []) if store is None else store.resume(program)
        stopped = ""
        for step in track(range(len(records) + 1, self.steps + 1), "steps"):
            tried, record = self._step(current.copy(), step, reference)
            if self.floor is not None and record.score is not None and record.score < self.floor:
                stopped = (
                    f"step {step} scored {record.score:.4f}, below the floor of {self.floor:g}: the one before is kept"
                )
                break
            current = tried
            records.append(record)
            if store is not None:
                store.save(current, records)
        if not records:
            raise PassError("the first step is below the floor", found=stopped, hint="more steps, or more tuning")
        return PassResult(current, True, (*_lines(records), *((stopped,) if stopped else ())))

    def _step(self, program: Program, step: int, reference: Reference | None) -> tuple[Program, StepRecord]:
        compress, left = self._at(step, reference)
        result = finished(compress, compress.run(program))
        notes = result.notes
        if self.tune is not None:
            result = finished(self.tune, self.tune.run(result.program))
        result.program.verify()
        score = None if self.evaluate is None else float(self.evaluate(result.program))
        return result.program, StepRecord(left, score, notes[:1])

    def _at(self, step: int, reference: Reference | None) -> tuple[Pass, float]:
        compress = self.compress
        if isinstance(compress, PruneChannels) and compress.counts and reference is not None:
            gone = 1 - self.pace.left(0.0, step, self.steps)
            sizes = reference.named
            counts = {
                name: sizes[name] - round((sizes[name] - count) * gone)
                for name, count in compress.counts.items()
                if name in sizes
            }
            return dataclasses.replace(compress, counts=counts, reference=reference), 1 - gone
        if isinstance(compress, PruneChannels):
            left = self.pace.left(compress.target.share, step, self.steps)
            target = dataclasses.replace(compress.target, share=left)
            return dataclasses.replace(compress, target=target, reference=reference), left
        pattern = compress.pattern
        left = self.pace.left(density_of(pattern), step, self.steps)
        if isinstance(pattern, NM):
            kept = max(pattern.n, min(pattern.m - 1, round(left * pattern.m)))
            return dataclasses.replace(compress, pattern=NM(kept, pattern.m)), kept / pattern.m
        return dataclasses.replace(compress, pattern=with_density(pattern, left)), left


def _lines(records: list[StepRecord]) -> list[str]:
    scores = ["" if record.score is None else f", score {record.score:.4f}" for record in records]
    pairs = enumerate(zip(records, scores, strict=True), start=1)
    return [
        f"step {step}: asked {record.left:.3f}{score}; {'; '.join(record.notes)}" for step, (record, score) in pairs
    ]


def _fingerprint(step: Gradually, program: Program) -> str:
    digest = hashlib.sha256(repr(plain(dataclasses.replace(step, checkpoint=None))).encode())
    for name, tensor in program.tensors().items():
        digest.update(repr((name, tuple(tensor.shape), tensor.double().sum().item())).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Store:
    """The program after the last step and the records of all, in a folder. Data is taken to be the same."""

    folder: Path
    fingerprint: str

    def save(self, program: Program, records: list[StepRecord]) -> None:
        """Write the program, then what names it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = f"step-{len(records):02d}.tersor"
            program.save(self.folder / file)
            rows = [dataclasses.asdict(record) for record in records]
            write_json(self.folder / "steps.json", {"of": self.fingerprint, "file": file, "steps": rows})
        except OSError as error:
            raise PassError(f"{self.folder} cannot hold checkpoints: {error.strerror}", hint="name a folder") from error

    def resume(self, given: Program) -> tuple[Program, list[StepRecord]]:
        """Where an earlier run stopped; the program given where there is none, or it was another."""
        try:
            data: dict[str, Any] = json.loads((self.folder / "steps.json").read_text(encoding="utf-8"))
            records = [StepRecord(row["left"], row["score"], tuple(row["notes"])) for row in data["steps"]]
            if data["of"] != self.fingerprint:
                return given, []
            loaded = Program.load(self.folder / data["file"])
        except (OSError, ValueError, KeyError, TypeError, ArchiveError):
            return given, []
        loaded.signature = dataclasses.replace(loaded.signature, outputs=given.signature.outputs)
        loaded.example = given.example
        return loaded, records
