"""Distillation without data: a student taught on inputs that are made from its teacher."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.ir.errors import TrainingError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .batches import ShuffledBatches, Split
from .distill import Distillation, Distiller, untaught
from .distillation_losses import soft_labels
from .finetune import for_epochs
from .loop import fit
from .optimize import optimize
from .options import Optimizer, Schedule, Training
from .program_task import Companion, ProgramTask, Settings
from .randomness import Stream
from .synthesis import Generator, Memory, ReverseGradient, smoothness
from .teacher import float_self


class Source(enum.Enum):
    """Where inputs come from.

    SYNTHESIZED: a set of inputs is optimized, once, so that the teacher is sure of a class for each and its batch norms
    see the statistics that they remember (arXiv:1912.08795). GENERATED: a generator is trained against the student, to
    make inputs on which it and the teacher differ, under the same statistics (arXiv:1912.11006).
    """

    SYNTHESIZED = "synthesized"
    GENERATED = "generated"


@dataclass(frozen=True)
class DistillDataFree(Pass):
    """Train a program to do as a teacher does, without any data.

    The teacher gives logits, first of its outputs, for one float input, and has its batch norms still; they are all
    that is known of the data.

    teacher: the program that is imitated; None: the program itself, as it is before it trains, in float.
    source: see `Source`.
    samples: how many inputs are synthesized; synthesis: the training that makes them, `size` at a time.
    size: rows a batch.
    training: the student's; `epochs` count passes over `samples` inputs, generated ones as well.
    temperature: of the soft labels. statistics, smooth: the weights of batch norm statistics and of smooth images in
        what inputs are made for; rivalry: of the generator's wish that student and teacher differ.

    Raises TrainingError where the teacher has no batch norm, or takes something else than one float input.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.TRAINED

    teacher: Program | None = None
    source: Source = Source.SYNTHESIZED
    samples: int = 1024
    size: int = 64
    epochs: int | None = None
    training: Training = field(default_factory=lambda: Training(epochs=20))
    synthesis: Training = field(
        default_factory=lambda: Training(
            steps=200, optimizer=Optimizer.ADAM, learning_rate=0.1, schedule=Schedule.COSINE, progress=False
        )
    )
    temperature: float = 4.0
    statistics: float = 5.0
    smooth: float = 0.01
    rivalry: float = 0.3

    def __post_init__(self) -> None:
        for name in ("samples", "size"):
            if getattr(self, name) < 2:
                raise TrainingError(f"{name} is out of range", expected="a number >= 2", found=getattr(self, name))

    def run(self, program: Program) -> PassResult:
        """Make the inputs and train."""
        teacher = float_self(program) if self.teacher is None else self.teacher
        options = for_epochs(self.training, self.epochs)
        if self.source is Source.GENERATED:
            return self._adversarial(program, teacher, options)
        inputs = self.synthesize(teacher, options.seed)
        distillation = Distillation(teacher, hard=0.0, temperature=self.temperature)
        task = ProgramTask(program, Settings(), Distiller(distillation, program), options)
        task.what = "distill"
        outcome = fit(task, ShuffledBatches(inputs, size=self.size), options)
        notes = (f"{len(inputs)} inputs synthesized", *outcome.notes(), *untaught(program, 0))
        return PassResult(task.result(), True, notes)

    def synthesize(self, teacher: Program, seed: int = 0) -> Tensor:
        """Inputs that the teacher takes for its data: float[samples, ...], the same for the same seed."""
        memory = Memory(teacher)
        batches = [
            self._batch(memory, seed + first, min(self.size, self.samples - first)).to(teacher.device)
            for first in range(0, self.samples, self.size)
        ]
        return torch.cat(batches)

    def _batch(self, memory: Memory, seed: int, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        images = nn.Parameter(torch.randn(rows, *memory.shape, generator=generator))
        memory.to(images.device)
        with torch.no_grad():
            classes = memory.logits(images).shape[-1]
        wanted = torch.randperm(rows, generator=generator) % classes

        def loss(batch: Any, share: float) -> Tensor:
            logits, distance = memory.look(images)
            sure = F.cross_entropy(logits, wanted.to(logits.device))
            return sure + self.statistics * distance + self.smooth * smoothness(images)

        optimize({"inputs": images}, loss, [None], self.synthesis, what="synthesize", move=memory.to)
        return images.detach()

    def _adversarial(self, program: Program, teacher: Program, options: Training) -> PassResult:
        memory = Memory(teacher)
        with Stream.seeded(options.seed).used():
            generator = Generator(memory.shape)
        rival = _Rival(memory, generator, self)
        per_epoch = -(-self.samples // self.size)
        steps = options.steps or options.epochs * per_epoch
        task = _AdversarialTask(program, rival, dataclasses.replace(options, steps=steps))
        outcome = fit(task, _Noise(per_epoch, self.size, generator.noise), task.options)
        return PassResult(task.result(), True, ("inputs generated", *outcome.notes(), *untaught(program, 0)))


@dataclass(frozen=True)
class _Noise:
    """Batches of normal noise."""

    count: int
    rows: int
    width: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.rows, self.width)


class _Rival(Companion):
    """The generator: its inputs are to part student and teacher, and yet look to the teacher like its data."""

    def __init__(self, memory: Memory, generator: Generator, options: DistillDataFree) -> None:
        self.memory, self.generator, self.options = memory, generator, options

    def attach(self, program: Program) -> tuple[str, ...]:
        return ()

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"generator.{name}": p for name, p in self.generator.named_parameters()}

    def statistics(self) -> dict[str, Tensor]:
        """What the generator's own norms remember."""
        return {f"generator.{name}": b for name, b in self.generator.named_buffers() if b.is_floating_point()}

    def to(self, device: torch.device) -> None:
        self.generator.to(device)
        self.memory.to(device)

    def combined(self, hard: Tensor | None, outputs: Any, taps: Any, parts: Split) -> Tensor:
        raise NotImplementedError("the task of a generator computes its loss itself")

    def loss(self, student: Program, noise: Tensor) -> Tensor:
        """The student learns from the teacher; the generator, behind a reversed gradient, to make that hard."""
        inputs = self.generator(noise)
        logits, distance = self.memory.look(inputs)
        sure = F.cross_entropy(logits, logits.detach().argmax(1))
        spread = logits.softmax(1).mean(0)
        balance = (spread * (spread + 1e-8).log()).sum()
        mine = self.options.statistics * distance + sure + 5 * balance + self.options.smooth * smoothness(inputs)
        turned = ReverseGradient.apply(inputs, self.options.rivalry)  # type: ignore[no-untyped-call]  # torch
        ours = student.run([turned])[0]
        apart = soft_labels(ours, self.memory.logits(turned), self.options.temperature)
        both: Tensor = apart + mine
        return both


class _AdversarialTask(ProgramTask):
    """A student and the generator of its inputs, in one loss."""

    what = "distill without data"

    def __init__(self, program: Program, rival: _Rival, options: Training) -> None:
        self.rival = rival
        super().__init__(program, Settings(), rival, options)

    def loss(self, batch: Any, share: float) -> Tensor:
        return self.rival.loss(self.training, batch)

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self.rival.statistics()}
