"""What a backend is, and what lowering gives."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.errors import ArchiveError, LoweringError
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.signature import Signature
from tersor.passes.base import Pass
from tersor.passes.manager import PassManager
from tersor.passes.preferences import Preferences
from tersor.passes.quantization.placement import Coverage, operator_of

from .clock import Clock
from .layer_costs import LayerCosts, by_macs

_LISTED = 8


@dataclass(frozen=True)
class Unsupported:
    """Why a target does not take a node, and what to do about it.

    node: its name. operator: without namespace, as `conv2d`. reason: what the target lacks. hint: what to try.
    origin: its place in the user's model. unknown: whether the target knows nothing of the operator, however it is
        called; then it is written as others before anything is refused, where that is exact.
    """

    node: str
    operator: str
    reason: str
    hint: str | None = None
    origin: Origin | None = None
    unknown: bool = False

    @classmethod
    def of(cls, node: fx.Node, reason: str, hint: str | None = None) -> Unsupported:
        """The reason for a node, with its operator and its place in the user's model."""
        return cls(node.name, operator_of(node), reason, hint, Origin.of(node))

    def __str__(self) -> str:
        place = f" ({self.origin})" if self.origin else ""
        return f"%{self.node} = {self.operator}: {self.reason}{place}{f'; try: {self.hint}' if self.hint else ''}"


@dataclass(frozen=True)
class AuditRow:
    """How one node runs on the target.

    node: its name in the program. operator: without namespace, as `conv2d`. precision: `int8`, `float32`, ...
    macs: its multiply-accumulates. reason: why it is float, where it is.
    """

    node: str
    operator: str
    precision: str
    macs: int = 0
    reason: str = ""


@dataclass(frozen=True)
class LoweringReport:
    """What lowering says of its result.

    target: by name. audit: a row for each node that does work. files: sizes in bytes by name. notes: for people.
    """

    target: str
    audit: tuple[AuditRow, ...] = ()
    files: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def integer_share(self) -> float:
        """The share of multiply-accumulates that run in integer, 0 to 1."""
        total = sum(row.macs for row in self.audit)
        return sum(row.macs for row in self.audit if row.precision.startswith("int")) / total if total else 0.0


class Artifact(ABC):
    """A lowered program on disk, and how to run it.

    explanation: how it came about, where `compress` made it: what was chosen and why, and what else was tried.
    """

    explanation: str = ""

    def __init__(self, path: Path, signature: Signature, report: LoweringReport) -> None:
        self.path = path
        self.signature = signature
        self.report = report

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs nested as the model's; outputs nested as the model's, on the device of the first input.

        Raises SignatureError where the inputs do not fit, MissingDependencyError where the runtime is not installed.
        """
        inputs = self.signature.flatten(args, kwargs)
        home = inputs[0].device if inputs else torch.device("cpu")
        return self.signature.outputs.unflatten(output.to(home) for output in self.run_flat(inputs))

    @abstractmethod
    def run_flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run on flat inputs that were checked already."""

    def latency(self, inputs: Sequence[Tensor]) -> float:
        """Seconds of one run on flat inputs: by this machine's clock, or by the device's where the target has one."""
        started = time.perf_counter()
        self.run_flat(inputs)
        return time.perf_counter() - started

    @property
    def clock(self) -> Clock:
        """What `latency` is worth here: whether the target itself runs, or what stands in for it."""
        return Clock.MEASURED

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Intermediate values with the names of the program's nodes, where the target can show them."""
        return iter(())


@dataclass(frozen=True)
class Backend(ABC):
    """A target. A frozen dataclass, so that its fields are its options: `OnnxRuntime(opset=21)`."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def preferences(self) -> Preferences:
        """What the target likes, with these options: `compress` and passes take their defaults from it."""
        return Preferences()

    @classmethod
    def missing(cls) -> str | None:
        """What has to be installed before artifacts can run here; None where nothing is missing."""
        return None

    @abstractmethod
    def supports(self, program: Program, node: fx.Node) -> Unsupported | None:
        """None where the target takes the node, else the reason."""

    def passes(self) -> tuple[Pass, ...]:
        """What has to run before `emit`, in order."""
        return ()

    def prepare(self, program: Program, *, verify: bool = True) -> Program:
        """The program after `passes`, on the CPU, ready to emit: the same files, wherever it was.

        verify: whether passes are checked, as of `PassManager`; a program that is only asked for its costs need not be.
        Raises LoweringError listing every node that is not taken.
        """
        program = program.to("cpu")
        steps = [step for step in self.passes() if step.gives is None or step.gives is not program.stage]
        if steps and program.stage not in steps[0].takes:
            raise self._too_early(program, steps[0])
        if steps:
            program = PassManager(steps, verify=verify, progress=False).run(program).program
        refused = self.unsupported(program)
        if any(found.unknown for found in refused):
            from .rewriting import without_unknown

            program = without_unknown(program, self.unsupported)
            refused = self.unsupported(program)
        if refused:
            listed = "\n    ".join(map(str, refused[:_LISTED]))
            more = f"\n    and {len(refused) - _LISTED} more" if len(refused) > _LISTED else ""
            raise LoweringError(f"target {self.name!r} does not take {len(refused)} nodes", found=listed + more)
        return program

    def _too_early(self, program: Program, step: Pass) -> LoweringError:
        wanted = self.preferences.coverage
        coverage = "" if wanted is Coverage.FASTEST else f", coverage=ts.Coverage.{wanted.name}"
        return LoweringError(
            f"target {self.name!r} does not take a program at stage {program.stage}",
            expected=" or ".join(sorted(str(stage) for stage in step.takes)),
            hint=f"run ts.Quantize(calibration=batches{coverage}) before, or ts.compress, which does",
        )

    def layer_costs(self, program: Program) -> LayerCosts:
        """What each layer of a program costs here, measured or modelled. Raises what `prepare` and `emit` raise."""
        return self.prepared_costs(self.prepare(program))

    def prepared_costs(self, program: Program) -> LayerCosts:
        """The same of what `prepare` gave. A target that knows more than multiply-accumulates overrides this."""
        return by_macs(program)

    @abstractmethod
    def emit(self, program: Program, out: Path) -> Artifact:
        """Write the artifact into the folder `out`. Never needs the target's hardware."""

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        """The artifact that `emit` wrote into a folder. Raises ArchiveError."""
        raise ArchiveError(f"target {cls.name!r} cannot open what it wrote", found=str(folder))

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Every node that the target does not take."""
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        return [reason for node in calls if (reason := self.supports(program, node)) is not None]
