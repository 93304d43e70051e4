"""Quantize each layer as a plan says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.quantization import Observer
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, Sequence
from ..canonical.canonicalize import Canonicalize
from ..rewriting.fold_batchnorm import FoldBatchNorm
from .block_weights import BlockScheme
from .calibrate import Calibrate
from .calibration_data import Replay
from .correct_bias import CorrectBias
from .gptq import GPTQ
from .insert_fake_quant import InsertFakeQuant
from .insert_weight_blocks import InsertWeightBlocks
from .precision_plan import Precision, PrecisionPlan
from .settle_grids import SettleGrids
from .smooth_quant import SmoothQuant

_BLOCKS = {
    Precision.INT8_WEIGHTS: BlockScheme(8, 32, symmetric=True),
    Precision.INT4_WEIGHTS: BlockScheme(4, 32, symmetric=True),
    Precision.INT4_WEIGHTS_ASYMMETRIC: BlockScheme(4, 32, symmetric=False),
}
_FOUR_BITS = (Precision.W4A8, Precision.INT4_WEIGHTS, Precision.INT4_WEIGHTS_ASYMMETRIC)


@dataclass(frozen=True)
class ApplyPrecision(Sequence):
    """Mixed precision: replay a plan that `search_precision` found or that somebody wrote.

    plan: a `PrecisionPlan`, or the path of a file that holds one. calibration: batches, as for `Quantize`; None is
    enough where no layer has activations on grids, and weights of 4 bits are then rounded to the nearest.

    Layers that the plan does not name stay float. Raises PassError where it names a layer that is not there,
    RecipeError where the file cannot be read.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    plan: PrecisionPlan | str = ""
    calibration: Iterable[Any] | None = None

    @property
    def gives(self) -> Stage | None:  # type: ignore[override]  # it depends on the plan
        """The stage that the plan leads to: float, where every layer stays so."""
        kept = set(self.read().layers.values()) <= {Precision.FLOAT32}
        return None if kept else Stage.FAKE_QUANT

    def read(self) -> PrecisionPlan:
        """The plan itself."""
        return self.plan if isinstance(self.plan, PrecisionPlan) else PrecisionPlan.load(self.plan)

    def expand(self) -> tuple[Pass, ...]:
        """The passes in order."""
        plan = self.read()
        data = None if self.calibration is None else Replay(self.calibration)
        steps: list[Pass] = [Canonicalize(), FoldBatchNorm(), CheckPlan(plan)]
        static = plan.of(*(precision for precision in Precision if precision.is_static))
        if static:
            if data is not None:
                steps.append(SmoothQuant(data, only=static))
            symmetric = plan.of(Precision.INT8_SYMMETRIC)
            steps.append(InsertFakeQuant(only=static, symmetric=symmetric, four_bits=plan.of(Precision.W4A8)))
            steps.append(Calibrate(data, Observer.OUTPUT, pair_safe=True))
        for precision, scheme in _BLOCKS.items():
            if layers := plan.of(precision):
                steps.append(InsertWeightBlocks(scheme, only=layers))
        if data is not None and plan.of(*_FOUR_BITS):
            steps.append(GPTQ(data, bits=4))
        if static:
            steps.append(SettleGrids())
            if data is not None:
                steps.append(CorrectBias(data))
        return tuple(steps)


@dataclass(frozen=True)
class CheckPlan(Pass):
    """Change nothing; refuse a plan that names layers which are not in the program."""

    plan: PrecisionPlan

    def run(self, program: Program) -> PassResult:
        """Compare names. Raises PassError."""
        names = {node.name for node in program.graph.nodes if node.op == "call_function"}
        missing = [layer for layer in self.plan.layers if layer not in names]
        if missing:
            raise PassError(
                f"the plan names {missing[0]!r}, which is no layer here",
                expected="layers of the canonical program",
                hint="a plan belongs to the model that it was made for; see `print(program)`",
            )
        return PassResult(program, False, (str(self.plan),))
