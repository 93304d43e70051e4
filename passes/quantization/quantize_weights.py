"""Weight-only quantization as one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tersor.ir.stage import Stage

from ..base import Pass, Promise, Sequence
from ..canonical.canonicalize import Canonicalize
from ..rewriting.fold_batchnorm import FoldBatchNorm
from .awq import AWQ
from .block_weights import BlockScheme
from .calibration_data import Replay
from .gptq import GPTQ
from .insert_weight_blocks import InsertWeightBlocks


@dataclass(frozen=True)
class QuantizeWeights(Sequence):
    """Weights of linears and experts in 4 or 8 bits, block by block, activations in float: smaller, and nearly as
    exact.

    For models whose time goes into reading weights, such as language models that decode token by token. With data,
    weights are scaled (`AWQ`) and rounded together (`GPTQ`); without, each is rounded to the nearest.

    bits, block, symmetric: see `BlockScheme`. calibration: batches, as for `Quantize`, or None. skip: as for
    `InsertFakeQuant`. scale: whether to run AWQ. round_together: whether to run GPTQ.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    bits: int = 4
    block: int = 32
    symmetric: bool = True
    calibration: Iterable[Any] | None = None
    skip: tuple[str, ...] = ()
    scale: bool = True
    round_together: bool = True

    def __post_init__(self) -> None:
        BlockScheme(self.bits, self.block, self.symmetric)

    def expand(self) -> tuple[Pass, ...]:
        """The passes in order."""
        scheme = BlockScheme(self.bits, self.block, self.symmetric)
        data = None if self.calibration is None else Replay(self.calibration)
        steps: list[Pass] = [Canonicalize(), FoldBatchNorm()]
        if data is not None and self.scale:
            steps.append(AWQ(data, scheme=scheme, skip=self.skip))
        steps.append(InsertWeightBlocks(scheme, self.skip))
        if data is not None and self.round_together:
            steps.append(GPTQ(data))
        return tuple(steps)
