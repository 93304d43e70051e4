"""Quantization-aware training: the program learns to live with its grids."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tersor.ir.errors import TrainingError
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Observer, Scheme
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, finished
from ..quantization.placement import Coverage
from ..quantization.quantize import Quantize
from ..quantization.settle_grids import SettleGrids
from .batches import ModelInputs, require_again
from .distill import Distillation, Distiller, untaught
from .events import At
from .finetune import for_epochs, metric_name
from .loop import fit
from .options import Better, Training
from .program_task import Loss, Metric, ProgramTask, Settings
from .simulate_folding import FoldSimulated, QuantizeBeforeFolding, fold_simulated

_CALIBRATION_BATCHES = 16


class Ranges(enum.Enum):
    """What happens to the grids while training.

    LEARNED: step sizes are trained with the weights (LSQ, arXiv:1902.08153). FROZEN: they stay as calibration found
    them, and only weights learn (the straight-through estimator, arXiv:1308.3432).
    """

    LEARNED = "learned"
    FROZEN = "frozen"


class BatchNorm(enum.Enum):
    """What happens to batch norm once the program is quantized.

    FOLDED: it is folded into the layer before it, and both train as one. TRAINED: it stays, and its statistics go on
    moving, while weights are rounded as they will be once it is folded. It is folded when its statistics are frozen, so
    that the rest of the run also rounds the biases that this gives.
    """

    FOLDED = "folded"
    TRAINED = "trained"


@dataclass(frozen=True)
class TrainQuantized(Pass):
    """Train through fake-quantize (QAT). What comes out is what every target is emitted from: there is no conversion.

    A float program is quantized first, from `calibration`, with batch norms folded (`Quantize`); one that is quantized
    already is trained as it is. `start` puts that off: until then the float program trains, batch norms included, and
    the grids are found on the weights of that time.

    batches, loss, epochs, training, metric, validation, better, freeze: see `Finetune`.
    scheme, coverage, operators, skip: see `InsertFakeQuant`; calibration: the first training batches by default.
    ranges: see `Ranges`.
    batch_norm: see `BatchNorm`; freeze_batch_norm: the share of the run from which statistics stay.
    start: the share of the run before which nothing is quantized.
    distillation: the teacher; by default the program itself as it was, in float. None trains on the targets alone.
    events: other passes in the middle of the run, such as pruning (see `At`).
    pair_safe: keep 8-bit weights within what CPUs without VNNI multiply exactly.

    Raises TrainingError where data or loss is missing or does not fit, or the loss stops being finite.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.TRAINED

    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    scheme: Scheme = INT8
    epochs: int | None = None
    training: Training = field(default_factory=Training)
    metric: Metric | None = None
    validation: Iterable[Any] | None = None
    better: Better = Better.HIGHER
    freeze: tuple[str, ...] = ()
    calibration: Iterable[Any] | None = None
    coverage: Coverage = Coverage.FASTEST
    operators: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    ranges: Ranges = Ranges.LEARNED
    batch_norm: BatchNorm = BatchNorm.FOLDED
    start: float = 0.0
    freeze_batch_norm: float = 1.0
    distillation: Distillation | None = field(default_factory=Distillation)
    events: tuple[At, ...] = ()
    pair_safe: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise TrainingError("start is out of range", expected="a share in [0, 1)", found=self.start)
        if self.batch_norm is BatchNorm.TRAINED and self.freeze_batch_norm <= self.start:
            raise TrainingError(
                "batch norm would be frozen before it can train quantized",
                expected=f"freeze_batch_norm over start, {self.start}",
                found=self.freeze_batch_norm,
            )

    def run(self, program: Program) -> PassResult:
        """Train, and return the program with its new weights and grids."""
        if self.batches is None or (self.loss is None and self.distillation is None):
            missing = "training data" if self.batches is None else "a loss"
            raise TrainingError(f"{missing} is missing", hint="TrainQuantized(batches, loss)")
        require_again(self.batches)
        teacher = Distiller(self.distillation, program) if self.distillation is not None else None
        options = for_epochs(self.training, self.epochs)
        task = ProgramTask(program, self._settings(program), teacher, options)
        task.what = "train quantized"
        outcome = fit(task, self.batches, options, self.better)
        trained = task.result()
        folded = fold_simulated(trained)
        settled = finished(SettleGrids(), SettleGrids().run(trained))
        notes = [*task.agenda.notes, *outcome.notes(metric_name(self.metric)), *settled.notes]
        notes += [f"batch norms folded at the end: {folded}"] if folded else []
        if self.loss is None and self.distillation is not None:
            notes += untaught(program, self.distillation.output)
        return PassResult(settled.program, True, tuple(notes))

    def _settings(self, program: Program) -> Settings:
        quantize: tuple[At, ...] = ()
        if program.stage is Stage.FLOAT and self.batch_norm is BatchNorm.FOLDED:
            quantize = (At(self.start, self._quantize(program)),)
        elif program.stage is Stage.FLOAT:
            quantize = (At(self.start, QuantizeBeforeFolding(self._quantize(program))),)
            if self.freeze_batch_norm < 1:
                quantize = (*quantize, At(self.freeze_batch_norm, FoldSimulated()))
        return Settings(
            self.loss,
            self.metric,
            self.validation,
            self.freeze,
            self.freeze_batch_norm,
            (*self.events, *quantize),
            learn_step_sizes=self.ranges is Ranges.LEARNED,
            pair_safe=self.pair_safe and self.scheme.weight.bits == 8,
        )

    def _quantize(self, program: Program) -> Quantize:
        assert self.batches is not None
        data = self.calibration
        if data is None:
            data = ModelInputs(program, self.batches, _CALIBRATION_BATCHES)
        observer = Observer.MIN_MAX if self.scheme.weight.bits == 8 else Observer.MSE
        return Quantize(
            self.scheme,
            data,
            weight_observer=observer,
            pair_safe=self.pair_safe,
            coverage=self.coverage,
            operators=self.operators,
            skip=self.skip,
            round_weights=False,  # training rounds them
            equalize=False if self.batch_norm is BatchNorm.TRAINED else None,
        )
