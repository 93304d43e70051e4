"""What a backend is, and what lowering gives."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, fx

from tersor.ir.errors import ArchiveError
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Scheme
from tersor.ir.signature import Signature
from tersor.passes.base import Pass
from tersor.passes.quantization.placement import Coverage, operator_of

from .clock import Clock


@dataclass(frozen=True)
class Unsupported:
    """Why a target does not take a node, and what to do about it.

    node: its name. operator: without namespace, as `conv2d`. reason: what the target lacks. hint: what to try.
    origin: its place in the user's model.
    """

    node: str
    operator: str
    reason: str
    hint: str | None = None
    origin: Origin | None = None

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
    """A lowered program on disk, and how to run it."""

    def __init__(self, path: Path, signature: Signature, report: LoweringReport) -> None:
        self.path = path
        self.signature = signature
        self.report = report

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs nested as the model's; outputs nested as the model's.

        Raises SignatureError where the inputs do not fit, MissingDependencyError where the runtime is not installed.
        """
        outputs = self.run_flat(self.signature.flatten(args, kwargs))
        return self.signature.outputs.unflatten(iter(outputs))

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
    scheme: ClassVar[Scheme] = INT8
    coverage: ClassVar[Coverage] = Coverage.FASTEST
    """How, and how much, `compress` quantizes for this target; `recipe` is what the command line runs unless told."""
    recipe: ClassVar[str] = "int8"

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
