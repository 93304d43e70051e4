"""Post-training quantization as one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tersor.ir.quantization import INT8, Granularity, Observer, Scheme
from tersor.ir.stage import Stage

from ..base import Pass, Promise, Sequence
from ..canonical.canonicalize import Canonicalize
from ..rewriting.convolve_batchnorm import ConvolveBatchNorm
from ..rewriting.expand_attention import ExpandAttention
from ..rewriting.fold_batchnorm import FoldBatchNorm
from .calibrate import Calibrate
from .calibration_data import Replay
from .correct_bias import CorrectBias
from .equalize_layers import EqualizeLayers
from .explain_choices import ExplainChoices
from .gptq import GPTQ
from .insert_fake_quant import InsertFakeQuant
from .placement import Coverage
from .settle_grids import SettleGrids
from .smooth_quant import SmoothQuant

if TYPE_CHECKING:
    from ..preferences import Preferences

FEW_BITS = 4
"""From here down, rounding each weight to the nearest costs more than it takes to round them together."""


@dataclass(frozen=True)
class Quantize(Sequence):
    """From float to what integer kernels run, with the algorithms that the graph and the scheme call for.

    In order: canonicalize, look at the graph, fold batch norm, equalize layers, smooth outlier channels, insert
    fake-quant, calibrate, round weights together, settle grids, correct biases. Each says in the report what it did, or
    why it did nothing. The arithmetic follows Jacob et al. 2018 (arXiv:1712.05877).

    scheme, coverage, operators, skip: see `InsertFakeQuant`. calibration, observer, weight_observer, percentile,
    pair_safe: see `Calibrate`, whose `batches` are `calibration` here.
    convolutions: see `Calibrate`; worth its time at 4 bits.
    smooth: see `SmoothQuant`; it decides for each linear whether it helps, and leaves convolutions alone.
    equalize: see `EqualizeLayers`. None: where weights have one scale a tensor, or few bits; scales for each channel do
        the same and more.
    round_weights: see `GPTQ`. None: where weights have at most 4 bits.
    correct_bias: see `CorrectBias`.

    Data that can be read again, as a list or a DataLoader, is read once for each pass that needs it. Of a generator the
    first 16 batches are kept for that, and memory does not grow with the rest.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    scheme: Scheme = INT8
    calibration: Iterable[Any] | None = None
    observer: Observer = Observer.OUTPUT
    weight_observer: Observer | None = None
    percentile: float = 99.99
    pair_safe: bool = True
    correct_bias: bool = True
    coverage: Coverage = Coverage.FASTEST
    operators: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    convolutions: bool = False
    smooth: bool = True
    equalize: bool | None = None
    round_weights: bool | None = None

    @classmethod
    def suited(cls, likes: Preferences, **options: Any) -> Quantize:
        """With what a target likes where nothing else is asked for."""
        return cls(**{"scheme": likes.scheme, "coverage": likes.coverage, "pair_safe": likes.pair_safe, **options})

    def expand(self) -> tuple[Pass, ...]:
        """The passes in order."""
        data = None if self.calibration is None else Replay(self.calibration)
        equalize, equalize_reason = self._equalizes()
        together, rounding_reason = self._rounds_together()
        smooth = self.smooth and data is not None
        smoothing = "outlier channels of linears are smoothed where that lowers their error"
        choices = (equalize_reason, smoothing if smooth else "no smoothing: not asked for", rounding_reason)
        steps: list[Pass] = [Canonicalize(), ExplainChoices(choices), FoldBatchNorm()]
        if self.coverage is Coverage.EVERYTHING:
            steps += [ConvolveBatchNorm(), ExpandAttention()]
        if equalize:
            steps.append(EqualizeLayers())
        if smooth:
            # On a grid of its own, an inserted multiplication by 1/s would round the smallest factors away.
            insert = self.coverage is not Coverage.EVERYTHING
            steps.append(SmoothQuant(data, scheme=self.scheme, insert=insert, skip=self.skip, convolutional=False))
        steps.append(InsertFakeQuant(self.scheme, self.coverage, self.operators, self.skip))
        ranges = (self.observer, self.weight_observer, self.percentile, self.pair_safe, self.convolutions)
        steps.append(Calibrate(data, *ranges))
        if data is not None and together:
            steps.append(GPTQ(data))
        steps.append(SettleGrids())
        if self.correct_bias and data is not None:
            steps.append(CorrectBias(data))
        return tuple(steps)

    def _equalizes(self) -> tuple[bool, str]:
        """Whether layers are equalized, and why."""
        coarse = self.scheme.weight.granularity is Granularity.PER_TENSOR
        if self.equalize is not None:
            return self.equalize, f"{'equalization' if self.equalize else 'no equalization'}: asked for"
        if coarse:
            return True, "equalization: weights have one scale a tensor"
        if self.scheme.weight.bits <= FEW_BITS:
            return True, f"equalization: weights have {self.scheme.weight.bits} bits"
        return False, "no equalization: weights have a scale a channel"

    def _rounds_together(self) -> tuple[bool, str]:
        """Whether weights are rounded by GPTQ, and why."""
        bits = self.scheme.weight.bits
        if self.round_weights is not None:
            return self.round_weights, f"{'GPTQ' if self.round_weights else 'rounding to the nearest'}: asked for"
        if bits <= FEW_BITS:
            return True, f"GPTQ: with {bits} bits, rounding each weight to the nearest costs too much"
        return False, f"rounding to the nearest: with {bits} bits it costs little"
