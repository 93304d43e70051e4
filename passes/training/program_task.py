"""A program that trains: its loss on batches, its metric, its zeros, and what happens to it on the way."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import ArchiveError, TrainingError
from tersor.ir.placement import move
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..processes import shared_out, summed
from .batches import ModelInputs, Split, moved, require_again, rows, split
from .diagnosis import first_bad_tensor
from .events import Agenda, At
from .masks import apply_masks, sparsity_masks
from .options import Optimizer, Training
from .step_sizes import StepSizes
from .task import Group, Task
from .training_graph import owned, statistics, training_copy

Loss = Callable[..., Tensor]
"""`loss(outputs, *targets)`: the mean over the batch, as a tensor of one value."""

Metric = Callable[..., Any]
"""`metric(outputs, *targets)`: the mean over the batch, a number."""


class Companion(ABC):
    """A second part of the loss, that may look into the program: a teacher."""

    @abstractmethod
    def attach(self, program: Program) -> tuple[str, ...]:
        """Called with the program that trains, whenever it is another; the names of nodes whose values are wanted."""

    @abstractmethod
    def combined(self, hard: Tensor | None, outputs: Sequence[Tensor], taps: Sequence[Tensor], parts: Split) -> Tensor:
        """The loss, from that on the targets (if any), the flat outputs and the wanted values."""

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What it learns itself, such as projections."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move to a device."""

    def release(self) -> None:  # noqa: B027  # optional
        """Called when all is done: give back what was borrowed, such as a module."""


@dataclass(frozen=True)
class Settings:
    """What a program trains with, besides batches and options of the loop.

    loss: of outputs and targets; None where a companion is all. metric, validation: what `evaluate` computes.
    freeze: regular expressions of parameter names that stay as they are.
    freeze_batch_norm: the share of the run after which batch norms keep to their running statistics; 0 means always.
    learn_step_sizes: once the program is fake-quantized, train its scales (LSQ).
    pair_safe: hold 8-bit weights to what CPUs without VNNI multiply exactly.
    """

    loss: Loss | None = None
    metric: Metric | None = None
    validation: Iterable[Any] | None = None
    freeze: tuple[str, ...] = ()
    freeze_batch_norm: float = 1.0
    events: tuple[At, ...] = ()
    learn_step_sizes: bool = False
    pair_safe: bool = False

    def __post_init__(self) -> None:
        if self.metric is not None and self.validation is None:
            raise TrainingError("a metric needs validation data", hint="validation=batches")
        if self.validation is not None:
            require_again(self.validation, "validation data")
        share = self.freeze_batch_norm
        if isinstance(share, bool) or not 0 <= share <= 1:
            hint = "0 freezes batch norms for all of the run, 1 never does"
            raise TrainingError(
                "freeze_batch_norm is out of range", expected="a share in [0, 1]", found=share, hint=hint
            )


class ProgramTask(Task):
    """Trains the parameters of a program.

    The program given stays as it is; `program` is a copy with tensors of its own, in inference mode, and the one that
    trains shares them. Parameters that are promised to be sparse keep their zeros.
    """

    what = "fine-tune"

    def __init__(
        self, program: Program, settings: Settings, companion: Companion | None = None, options: Training | None = None
    ) -> None:
        self.settings, self.companion, self.options = settings, companion, options or Training()
        self.home = self.device = program.device
        self.program = owned(program, self.device).eval()
        self.agenda = Agenda(settings.events)
        self.batch_norm_frozen = settings.freeze_batch_norm <= 0
        self._refuse_unmatched()
        self._adopt(self.program)

    # -- what trains -----------------------------------------------------------------------------------------------

    def _adopt(self, program: Program) -> None:
        """Train this program from now on."""
        self.program = program
        self.step_sizes: StepSizes | None = None
        if program.stage is Stage.FAKE_QUANT and self.settings.learn_step_sizes:
            self.step_sizes = StepSizes(program, self.settings.pair_safe)
            self.step_sizes.constrain()
        self.masks = sparsity_masks(program)
        self._rebuild()

    def _rebuild(self) -> None:
        taps = self.companion.attach(self.program) if self.companion is not None else ()
        self.training = training_copy(self.program, self.batch_norm_frozen, taps)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained of the program: every parameter that has a gradient and is not frozen."""
        chosen = self.program.parameters().items()
        return {name: p for name, p in chosen if p.requires_grad and not self._is_frozen(name)}

    def groups(self) -> list[Group]:
        sizes = self.step_sizes.parameters() if self.step_sizes is not None else {}
        weights = {name: p for name, p in self.parameters().items() if name not in sizes}
        groups = [Group({**weights, **self._learned_by_companion()})]
        for name, magnitude in self.step_sizes.magnitudes().items() if self.step_sizes is not None else ():
            # Adam moves every parameter by about the learning rate, whatever its size; SGD has LSQ's gradient scale.
            speed = 1.0 if self.options.optimizer is Optimizer.SGD else magnitude
            if not self._is_frozen(name):
                groups.append(Group({name: sizes[name]}, speed, decay=False))
        return [group for group in groups if group.parameters]

    def state(self) -> dict[str, Tensor]:
        return {**self.parameters(), **statistics(self.program), **self._learned_by_companion()}

    def _learned_by_companion(self) -> dict[str, nn.Parameter]:
        return self.companion.parameters() if self.companion is not None else {}

    def _is_frozen(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.settings.freeze)

    def _refuse_unmatched(self) -> None:
        names = self.program.parameters()
        for pattern in self.settings.freeze:
            if not any(re.fullmatch(pattern, name) for name in names):
                hint = f"parameters are {', '.join(list(names)[:8])}, ..."
                raise TrainingError(f"freeze={pattern!r} matches no parameter", hint=hint)

    # -- the loop's side -------------------------------------------------------------------------------------------

    def loss(self, batch: Any, share: float) -> Tensor:
        parts = split(self.training, batch)
        values = self.training.run(parts.inputs(self.training))
        count = len(self.training.signature.output_names)
        hard = None
        if self.settings.loss is not None:
            outputs = self.training.unflatten(values[:count])
            hard = self.settings.loss(outputs, *parts.targets, **parts.named_targets)
        if self.companion is None:
            assert hard is not None
            return hard
        return self.companion.combined(hard, values[:count], values[count:], parts)

    def begin(self, steps: int) -> None:
        self.agenda.check(self.program, steps)

    def advance(self, step: int, steps: int) -> bool:
        if not self.batch_norm_frozen and step >= self.settings.freeze_batch_norm * steps:
            self.batch_norm_frozen = True
            self._rebuild()
        if not self.agenda.is_due(step, steps):
            return False
        self._adopt(owned(self.agenda.take(self._at_home(), step, steps), self.device))
        return True

    def constrain(self) -> None:
        if self.masks:
            apply_masks(self.program.tensors(), self.masks)
        if self.step_sizes is not None:
            self.step_sizes.constrain()

    def evaluate(self) -> float | None:
        if self.settings.metric is None or self.settings.validation is None:
            return None
        total = torch.zeros(2, dtype=torch.float64)
        for given in shared_out(self.settings.validation):
            batch = moved(given, self.device)
            parts = split(self.program, batch)
            outputs = self.program.unflatten(self.program.run(parts.inputs(self.program)))
            value = float(self.settings.metric(outputs, *parts.targets, **parts.named_targets))
            total += torch.tensor([value * rows(batch), rows(batch)], dtype=torch.float64)
        score, count = summed(total).tolist()
        if not count:
            raise TrainingError("validation data is empty", expected="at least one batch", found="none")
        return float(score / count)

    def explain(self, batch: Any, share: float) -> TrainingError | None:
        return first_bad_tensor(self.training, batch, self.parameters())

    def body(self) -> nn.Module:
        return self.training.module

    def whole_tensors(self) -> str | None:
        if self.masks:
            return "masks of sparse parameters"
        if self.settings.events:
            return "passes in the middle of the run"
        if self.step_sizes is not None:
            return "learned step sizes"
        return "what a companion learns" if self._learned_by_companion() else None

    def save_structure(self, stem: Path) -> None:
        if self.settings.events:
            self.program.save(stem.with_suffix(".tersor"))

    def load_structure(self, stem: Path, step: int, steps: int) -> None:
        self.batch_norm_frozen = step > self.settings.freeze_batch_norm * steps
        self.agenda.skip_to(step, steps)
        if not self.settings.events:
            self._rebuild()
            return
        try:
            loaded = Program.load(stem.with_suffix(".tersor"))
        except ArchiveError as error:
            raise TrainingError(f"the program of a checkpoint does not load: {error.what}") from error
        loaded.example = self.program.example
        self._adopt(owned(loaded, self.device))

    def to(self, device: torch.device) -> None:
        self.device = device
        move(self.program, device)
        if self.companion is not None:
            self.companion.to(device)
        self._adopt(self.program)

    # -- the result ------------------------------------------------------------------------------------------------

    def result(self) -> Program:
        """The trained program, where the program given was, with step sizes as targets have them."""
        if self.companion is not None:
            self.companion.release()
        return self._at_home()

    def _at_home(self) -> Program:
        if self.step_sizes is not None:
            self.step_sizes.freeze()
            self.step_sizes = None
        move(self.program, self.home)
        return self.program

    def inputs(self, batches: Iterable[Any], count: int | None = None) -> ModelInputs:
        """The part of training batches that the program is called with."""
        return ModelInputs(self.program, batches, count)
