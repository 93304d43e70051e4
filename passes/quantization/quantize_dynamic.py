"""Dynamic quantization as one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tersor.ir.quantization import INT8, QuantType, Scheme
from tersor.ir.stage import Stage

from ..base import Pass, Promise, Sequence
from ..canonical.canonicalize import Canonicalize
from ..rewriting.fold_batchnorm import FoldBatchNorm
from .calibration_data import Replay
from .insert_dynamic_quant import InsertDynamicQuant
from .smooth_quant import SmoothQuant


@dataclass(frozen=True)
class QuantizeDynamic(Sequence):
    """Linears with int8 weights, and activations whose scales are found at run time. It works without data.

    per_token, weight, pair_safe, skip: see `InsertDynamicQuant`. calibration: batches, as for `Quantize`; with them,
    outlier channels are smoothed first (`SmoothQuant`), which helps a scale a tensor most.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    per_token: bool = False
    weight: QuantType = INT8.weight
    pair_safe: bool = True
    skip: tuple[str, ...] = ()
    calibration: Iterable[Any] | None = None

    def expand(self) -> tuple[Pass, ...]:
        """The passes in order."""
        steps: list[Pass] = [Canonicalize(), FoldBatchNorm()]
        if self.calibration is not None:
            scheme = Scheme(weight=self.weight)
            steps.append(SmoothQuant(Replay(self.calibration), scheme=scheme, skip=self.skip))
        steps.append(InsertDynamicQuant(self.per_token, self.weight, self.pair_safe, self.skip))
        return tuple(steps)
