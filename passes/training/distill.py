"""Knowledge distillation: a student that learns what a teacher says, and how it gets there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.ir.errors import TrainingError
from tersor.ir.example import example_of
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .batches import Split
from .distillation_losses import attention_transfer, hint, relations, soft_labels
from .events import At, require_same_stage
from .features import Pair, output_of
from .finetune import for_epochs, metric_name
from .loop import fit
from .options import Better, Training
from .program_task import Companion, Loss, Metric, ProgramTask, Settings
from .teacher import Teacher, float_self

Paired = Pair | str | tuple[str, str]
"""A pair of modules; one path stands for the same in student and teacher."""


@dataclass(frozen=True)
class Distillation:
    """What is learned from whom.

    The loss is `hard * loss(outputs, targets) + (1 - hard) * T^2 KL(teacher_T || student_T)`, plus what is asked for of
    the features, each with its weight.

    teacher: a program, or a module of torch that takes the same inputs. None: the program itself as it was when the
        run began, in float.
    hard: the share of the loss on the targets; 0 without a loss.
    temperature: T.
    output: which of the flat outputs holds the logits.
    attention: modules whose attention maps are to be alike; hints: whose outputs are, after a projection that is
        learned; relations: in whose outputs samples are to lie alike; of the logits where `relate_logits`.
    attention_weight, hint_weight, relation_weight: what each of these counts in the loss.
    cache_megabytes: memory for the teacher's answers, which are then computed once a sample; 0 for none.
    """

    teacher: Program | nn.Module | None = None
    hard: float = 0.5
    temperature: float = 4.0
    output: int = 0
    attention: tuple[Paired, ...] = ()
    attention_weight: float = 1.0
    hints: tuple[Paired, ...] = ()
    hint_weight: float = 1.0
    relations: tuple[Paired, ...] = ()
    relation_weight: float = 1.0
    relate_logits: bool = False
    cache_megabytes: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.hard <= 1:
            raise TrainingError("hard is out of range", expected="a share in [0, 1]", found=self.hard)
        if not self.temperature > 0:
            raise TrainingError("temperature is out of range", expected="a number > 0", found=self.temperature)

    def __str__(self) -> str:
        who = "itself" if self.teacher is None else type(self.teacher).__name__
        return f"teacher {who}, hard {self.hard}, T {self.temperature}"


class Distiller(Companion):
    """A teacher beside a program that trains."""

    def __init__(self, options: Distillation, program: Program) -> None:
        self.options = options
        groups = (options.attention, options.hints, options.relations)
        self.attention, self.hints, self.relations = ([Pair.of(pair) for pair in group] for group in groups)
        self.pairs = [*self.attention, *self.hints, *self.relations]
        model = float_self(program) if options.teacher is None else options.teacher
        paths = [pair.teacher for pair in self.pairs]
        self.teacher = Teacher(model, paths, options.cache_megabytes << 20)
        self.projections: dict[str, nn.Parameter] = {}
        self.device = torch.device("cpu")

    def attach(self, program: Program) -> tuple[str, ...]:
        nodes = [output_of(program, pair.student) for pair in self.pairs]
        if self.hints:
            self._project(program)
        return tuple(node.name for node in nodes)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.projections

    def to(self, device: torch.device) -> None:
        self.device = device
        self.teacher.to(device)
        for projection in self.projections.values():
            projection.data = projection.data.to(device)

    def release(self) -> None:
        self.teacher.release()

    def combined(self, hard: Tensor | None, outputs: Sequence[Tensor], taps: Sequence[Tensor], parts: Split) -> Tensor:
        answer = self.teacher(parts)
        told = answer[len(answer) - len(self.pairs) :]
        ours, theirs = outputs[self.options.output], answer[self.options.output]
        if ours.shape != theirs.shape:
            raise TrainingError("student and teacher give other logits", expected=theirs.shape, found=ours.shape)
        loss = soft_labels(ours, theirs, self.options.temperature)
        if hard is not None:
            loss = self.options.hard * hard + (1 - self.options.hard) * loss
        if self.options.relate_logits:
            loss = loss + self.options.relation_weight * relations(ours, theirs)
        total: Tensor = loss + self._of_features(list(taps), list(told))
        return total

    def _of_features(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        total = torch.zeros((), device=self.device)
        first, second = len(self.attention), len(self.attention) + len(self.hints)
        for student, teacher in zip(ours[:first], theirs[:first], strict=True):
            total = total + self.options.attention_weight * attention_transfer(student, teacher)
        for index, (student, teacher) in enumerate(zip(ours[first:second], theirs[first:second], strict=True)):
            total = total + self.options.hint_weight * hint(self._projected(index, student, teacher), teacher)
        for student, teacher in zip(ours[second:], theirs[second:], strict=True):
            total = total + self.options.relation_weight * relations(student, teacher)
        return total

    def _projected(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        axis = _channels(student)
        projected: Tensor = F.linear(student.movedim(axis, -1), self.projections[_name(index)]).movedim(-1, axis)
        if projected.dim() == teacher.dim() == 4 and projected.shape[2:] != teacher.shape[2:]:
            projected = F.interpolate(projected, teacher.shape[2:], mode="bilinear", align_corners=False)
        if projected.shape != teacher.shape:
            pair = self.hints[index]
            raise TrainingError(f"a hint does not fit: {pair}", expected=teacher.shape, found=student.shape)
        return projected

    def _project(self, program: Program) -> None:
        """Make the projections, from the student's channels to the teacher's; those that fit already stay."""
        inputs = iter(tensor.to(self.device) for tensor in example_of(program))
        arguments = program.signature.args.unflatten(inputs), program.signature.kwargs.unflatten(inputs)
        answer = self.teacher(Split(*arguments, (), {}))
        told = answer[len(answer) - len(self.pairs) :][len(self.attention) :]
        generator = torch.Generator().manual_seed(0)
        for index, pair in enumerate(self.hints):
            value = output_of(program, pair.student).meta["val"]
            shape = told[index].shape[_channels(told[index])], int(value.shape[_channels(value)])
            old = self.projections.get(_name(index))
            if old is None or old.shape != shape:
                start = torch.eye(*shape) if shape[0] == shape[1] else _random(shape, generator)
                self.projections[_name(index)] = nn.Parameter(start.to(self.device))


def untaught(program: Program, taught: int) -> tuple[str, ...]:
    """A note on the outputs that nobody taught, where there is no loss on targets: they drift as the rest trains."""
    others = [name for index, name in enumerate(program.signature.output_names) if index != taught]
    return (f"without a loss these outputs were not taught: {', '.join(others)}",) if others else ()


def _channels(value: Tensor) -> int:
    """The axis of the channels: [batch, channels, ...], but [batch, tokens, channels]."""
    return 2 if value.dim() == 3 else 1


def _name(index: int) -> str:
    return f"distillation.projection_{index}"


def _random(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    values: Tensor = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    return values


@dataclass(frozen=True)
class Distill(Pass):
    """Train a program to do as a teacher does.

    batches, loss, epochs, training, metric, validation, better, freeze, freeze_batch_norm, events: see `Finetune`;
        without a loss, batches need no targets, and the teacher is all that the student learns from.
    distillation: the teacher, and what is learned from it.

    Raises TrainingError where data is missing, student and teacher do not fit, or a module is not known.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.TRAINED

    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    distillation: Distillation = field(default_factory=Distillation)
    epochs: int | None = None
    training: Training = field(default_factory=Training)
    metric: Metric | None = None
    validation: Iterable[Any] | None = None
    better: Better = Better.HIGHER
    freeze: tuple[str, ...] = ()
    freeze_batch_norm: float = 1.0
    events: tuple[At, ...] = ()

    def __post_init__(self) -> None:
        require_same_stage(self.events)

    def run(self, program: Program) -> PassResult:
        """Train, and return the program with its new tensors."""
        if self.batches is None:
            raise TrainingError("training data is missing", hint="Distill(batches, loss, Distillation(teacher))")
        settings = Settings(self.loss, self.metric, self.validation, self.freeze, self.freeze_batch_norm, self.events)
        options = for_epochs(self.training, self.epochs)
        task = ProgramTask(program, settings, Distiller(self.distillation, program), options)
        task.what = "distill"
        outcome = fit(task, self.batches, options, self.better)
        notes = (str(self.distillation), *task.agenda.notes, *outcome.notes(metric_name(self.metric)))
        if self.loss is None:
            notes += untaught(program, self.distillation.output)
        return PassResult(task.result(), True, notes)
