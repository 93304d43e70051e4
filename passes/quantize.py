"""Post-training quantization as one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tersor.ir.quantization import INT8, Observer, Scheme
from tersor.ir.stage import Stage

from .base import Pass, Promise, Sequence
from .calibrate import Calibrate
from .canonicalize import Canonicalize
from .fold_batchnorm import FoldBatchNorm
from .insert_fake_quant import InsertFakeQuant
from .placement import Coverage


@dataclass(frozen=True)
class Quantize(Sequence):
    """Canonicalize, fold batch norm, insert fake-quant, calibrate: a float program to one that integer kernels run.

    Quantization and its arithmetic follow Jacob et al. 2018 (arXiv:1712.05877).

    scheme, coverage, operators, skip: see `InsertFakeQuant`. calibration, observer, weight_observer, percentile: see
    `Calibrate`, whose `batches` are `calibration` here.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    scheme: Scheme = INT8
    calibration: Iterable[Any] | None = None
    observer: Observer = Observer.MSE
    weight_observer: Observer = Observer.MIN_MAX
    percentile: float = 99.99
    coverage: Coverage = Coverage.FASTEST
    operators: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def expand(self) -> tuple[Pass, ...]:
        """The four passes."""
        return (
            Canonicalize(),
            FoldBatchNorm(),
            InsertFakeQuant(self.scheme, self.coverage, self.operators, self.skip),
            Calibrate(self.calibration, self.observer, self.weight_observer, self.percentile),
        )
