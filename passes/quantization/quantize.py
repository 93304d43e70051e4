"""Post-training quantization as one pass."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from tersor.ir.quantization import INT8, Observer, Scheme
from tersor.ir.stage import Stage

from ..base import Pass, Promise, Sequence
from ..canonical.canonicalize import Canonicalize
from ..rewriting.expand_attention import ExpandAttention
from ..rewriting.fold_batchnorm import FoldBatchNorm
from .calibrate import Calibrate
from .correct_bias import CorrectBias
from .insert_fake_quant import InsertFakeQuant
from .placement import Coverage
from .settle_grids import SettleGrids


@dataclass(frozen=True)
class Quantize(Sequence):
    """From float to what integer kernels run: fold, insert fake-quant, calibrate, settle grids, correct biases.

    Quantization and its arithmetic follow Jacob et al. 2018 (arXiv:1712.05877).

    scheme, coverage, operators, skip: see `InsertFakeQuant`. calibration, observer, weight_observer, percentile,
    pair_safe: see `Calibrate`, whose `batches` are `calibration` here; they are read once. correct_bias: see
    `CorrectBias`; it reuses the first batches, which are kept.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    scheme: Scheme = INT8
    calibration: Iterable[Any] | None = None
    observer: Observer = Observer.MSE
    weight_observer: Observer = Observer.MIN_MAX
    percentile: float = 99.99
    pair_safe: bool = True
    correct_bias: bool = True
    coverage: Coverage = Coverage.FASTEST
    operators: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def expand(self) -> tuple[Pass, ...]:
        """The passes in order."""
        data = None if self.calibration is None else _Replay(self.calibration, CorrectBias.count)
        calibrate = Calibrate(data, self.observer, self.weight_observer, self.percentile, self.pair_safe)
        correct = (CorrectBias(data),) if self.correct_bias and data is not None else ()
        insert = InsertFakeQuant(self.scheme, self.coverage, self.operators, self.skip)
        expand = (ExpandAttention(),) if self.coverage is Coverage.EVERYTHING else ()
        return (Canonicalize(), FoldBatchNorm(), *expand, insert, calibrate, SettleGrids(), *correct)


class _Replay:
    """Batches that are read once and whose first few can be read again, whatever they come from."""

    def __init__(self, batches: Iterable[Any], keep: int) -> None:
        self._batches: Iterable[Any] | None = batches
        self._keep = keep
        self._kept: list[Any] = []
        self._length = operator.length_hint(batches)

    def __iter__(self) -> Iterator[Any]:
        if self._batches is None:
            yield from self._kept
            return
        batches, self._batches = self._batches, None
        for batch in batches:
            if len(self._kept) < self._keep:
                self._kept.append(batch)
            yield batch

    def __length_hint__(self) -> int:
        return self._length

    def __str__(self) -> str:
        return "calibration batches"
