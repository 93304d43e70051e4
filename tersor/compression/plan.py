"""A plan: how far each method goes. It becomes passes, and is told in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tersor.ir.program import Program
from tersor.ir.quantization import Scheme
from tersor.ir.sparsity import Pattern
from tersor.passes.base import Pass
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.preferences import Preferences
from tersor.passes.pruning.criteria import Criterion, Magnitude, Taylor
from tersor.passes.pruning.gradually import Gradually
from tersor.passes.pruning.prune_channels import PruneChannels, Ranking
from tersor.passes.pruning.targets import Target
from tersor.passes.quantization.apply_precision import ApplyPrecision
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.precision_plan import PrecisionPlan
from tersor.passes.quantization.quantize_weights import QuantizeWeights
from tersor.passes.quantization.snap_scales import SnapScales
from tersor.passes.sparsity.criteria import SparseGPT, WeightCriterion, WeightMagnitude
from tersor.passes.sparsity.sparsify import Sparsify
from tersor.passes.training.distill import Distill, Distillation
from tersor.passes.training.distill_data_free import DistillDataFree
from tersor.passes.training.options import Training
from tersor.passes.training.train_quantized import TrainQuantized

from ..inputs import Seeded
from ..layer_record import pattern_text
from ..lowering import quantization

_STEPS = 3
_NAMED = 8
_QUANTIZED_RATE = 0.3
"""Learning rate of quantized training, against the one in float: weights have settled by then."""


@dataclass(frozen=True)
class Ingredients:
    """What plans are made with.

    likes: the target's preferences. given: the program that is compressed, which teaches. student: whether another
    program than it is compressed, from nothing. calibration, data, loss, training: see `compress`.
    synthetic: whether calibration data is made up; then nothing is fitted to it but ranges.
    dreams: whether the program remembers enough of its data to be taught without any.
    """

    likes: Preferences
    given: Program
    calibration: list[Any]
    data: Iterable[Any] | None = None
    loss: Callable[..., Tensor] | None = None
    training: Training = field(default_factory=Training)
    synthetic: bool = False
    dreams: bool = False
    student: bool = False
    teacher: Program | nn.Module | None = None
    checkpoint: str | None = None

    @property
    def trains(self) -> bool:
        """Whether there is anything to train on."""
        return self.data is not None or self.dreams


@dataclass(frozen=True)
class Plan:
    """How far each method goes.

    prune: what stays of the channels, by the measure that says which to cut first; None prunes nothing.
    counts: what stays of the channels of each axis, by name, instead. multiple: of channels, where the target's own is
        too coarse. pattern: of zeros.
    scheme, coverage: others than the target's own. block_bits: weights alone, in blocks. precision: layer by layer.
    quantized_training: whether to train through the grids. tuned: whether to train at all.
    """

    prune: Target | None = None
    counts: Mapping[str, int] | None = None
    multiple: int | None = None
    pattern: Pattern | None = None
    scheme: Scheme | None = None
    coverage: Coverage | None = None
    block_bits: int | None = None
    precision: PrecisionPlan | None = None
    quantized_training: bool = False
    tuned: bool = False

    @property
    def cuts(self) -> bool:
        """Whether any channel goes."""
        return self.prune is not None or bool(self.counts)

    def passes(self, given: Ingredients) -> list[Pass]:
        """The passes in order."""
        return [*self.shaping(given), *self._quantized(given)]

    def shaping(self, given: Ingredients) -> list[Pass]:
        """The passes before quantization."""
        steps: list[Pass] = [Canonicalize()]
        if given.student and self.tuned:
            steps += self._taught(given)
        if self.cuts:
            steps += self._pruned(given)
        if self.pattern is not None:
            steps.append(Sparsify.suited(given.likes, 1.0, pattern=self.pattern, criterion=self._weights(given)))
            steps += self._taught(given) if self.tuned else []
        return steps

    def _taught(self, given: Ingredients) -> list[Pass]:
        """Distillation from the model itself, on data where there is some."""
        if given.data is not None:
            teacher = Distillation(given.teacher or given.given)
            return [Distill(given.data, given.loss, teacher, training=given.training)]
        return [DistillDataFree(given.given, samples=256, training=given.training)] if given.dreams else []

    def _pruned(self, given: Ingredients) -> list[Pass]:
        criterion: Criterion = Magnitude(normalized=True)
        if self.tuned and given.data is not None and given.loss is not None:
            criterion = Taylor(Seeded(given.data), given.loss)
        if self.counts:
            prune = PruneChannels(criterion=criterion, counts=self.counts)
        else:
            options: dict[str, Any] = {} if self.multiple is None else {"multiple": self.multiple}
            ranking = Ranking.GLOBAL if criterion.in_loss else Ranking.COST
            options |= {"target": self.prune, "criterion": criterion, "ranking": ranking}
            prune = PruneChannels.suited(given.likes, **options)
        if not self.tuned:
            return [prune]
        if given.data is None:
            return [prune, *self._taught(given)]
        (tune,) = self._taught(given)
        steps = 1 if self.prune is not None and self.prune.share > 0.7 else _STEPS
        return [Gradually(prune, tune, steps=steps, checkpoint=given.checkpoint)]

    def _weights(self, given: Ingredients) -> WeightCriterion:
        return WeightMagnitude() if given.synthetic else SparseGPT(given.calibration)

    def _quantized(self, given: Ingredients) -> list[Pass]:
        likes = given.likes
        if self.block_bits is not None:
            data = None if given.synthetic else given.calibration
            return [QuantizeWeights(self.block_bits, calibration=data)]
        if self.precision is not None:
            return [ApplyPrecision(self.precision, given.calibration)]
        scheme, coverage = self.scheme or likes.scheme, self.coverage or likes.coverage
        if not self.quantized_training:
            return quantization(likes, given.calibration, scheme=scheme, coverage=coverage)
        rate = given.training.learning_rate * _QUANTIZED_RATE
        trained = TrainQuantized(
            given.data,
            given.loss,
            scheme,
            training=dataclasses.replace(given.training, learning_rate=rate),
            calibration=given.calibration,
            coverage=coverage,
            distillation=Distillation(given.teacher or given.given),
            pair_safe=likes.pair_safe,
        )
        return [trained, SnapScales()] if likes.short_multipliers else [trained]

    def words(self, likes: Preferences) -> str:
        """The plan in a line."""
        parts = []
        if self.counts:
            kept = [f"{name} {count}" for name, count in self.counts.items()]
            more = f" and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
            parts.append(f"channels cut to {', '.join(kept[:_NAMED])}{more}")
        elif self.prune is not None:
            multiple = self.multiple or likes.multiples.channels
            parts.append(f"channels cut to {self.prune.share:.3g} of {self.prune.what}, in multiples of {multiple}")
        if self.pattern is not None:
            density = getattr(self.pattern, "density", None)
            left = "" if density is None else f", {density:.2g} of the weights left"
            parts.append(f"{pattern_text(self.pattern)} sparse{left}")
        parts.append(self._precision_words(likes))
        return "; ".join(parts)

    def _precision_words(self, likes: Preferences) -> str:
        if self.block_bits is not None:
            return f"weights of {self.block_bits} bits in blocks"
        if self.precision is not None:
            return f"precision by layer: {self.precision}"
        scheme = self.scheme or likes.scheme
        how = "trained through its grids" if self.quantized_training else "quantized after training"
        what = "" if self.coverage is None else f" of {self.coverage.value}"
        return f"w{scheme.weight.bits}a{scheme.activation.bits}{what}, {how}"
