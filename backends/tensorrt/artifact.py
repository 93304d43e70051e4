"""A lowered model: an engine with the ONNX file that it was built from, run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from tersor.ir.errors import ArchiveError, LoweringError, MissingDependencyError
from tersor.ir.program import Program
from tersor.ir.signature import Signature

from ..base import Artifact, LoweringReport
from ..manifest import read_manifest
from .build_engine import INSTALL, find_package, gpu_capability
from .engine_file import NAME, PLAN, EngineInfo, LayerRow, misfits, program_digest, read_info
from .execution import EngineRunner, load_engine
from .layered import build_layered, run_onnx


def open_artifact(folder: Path) -> TensorRTArtifact:
    """The artifact in a folder. Raises ArchiveError where it is damaged."""
    signature, report = read_manifest(folder, "tensorrt")
    info = read_info(folder) if (folder / NAME).is_file() else None
    if info is None and PLAN in report.files:
        raise ArchiveError(f"the artifact lacks {NAME}", found=str(folder))
    return TensorRTArtifact(folder, signature, report, info)


class TensorRTArtifact(Artifact):
    """`model.engine` in a folder, beside `model.onnx`. The engine is loaded at the first run.

    info: what the engine was built from and for, and how it runs each layer; None where none was built.
    """

    def __init__(self, path: Path, signature: Signature, report: LoweringReport, info: EngineInfo | None) -> None:
        super().__init__(path, signature, report)
        self.info = info

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.path / "model.onnx"

    @property
    def engine(self) -> Path:
        """The serialized engine."""
        return self.path / PLAN

    @property
    def layers_run(self) -> tuple[LayerRow, ...]:
        """How the engine runs each convolution, linear and matrix product."""
        return self.info.layers if self.info is not None else ()

    def integer_share(self, *operators: str) -> float:
        """The share of multiply-accumulates in int8, of these operators alone (`conv2d`) where any are named."""
        rows = [row for row in self.layers_run if not operators or row.operator.rpartition(".")[2] in operators]
        total = sum(row.macs for row in rows)
        return sum(row.macs for row in rows if row.integer) / total if total else 0.0

    def table(self) -> Table:
        """The audit, a row a product."""
        result = Table(title=f"{self.integer_share():.1%} of MACs in int8", header_style="bold")
        for heading in ("node", "operator", "MACs", "weights", "activations", "kernel", "with", "why not int8"):
            result.add_column(heading, justify="right" if heading == "MACs" else "left")
        for row in self.layers_run:
            numbers = (f"{row.macs:,}", row.weights, row.activations, row.kernel, ", ".join(row.fused), row.why)
            result.add_row(row.node, row.operator, *numbers)
        return result

    # -- running ---------------------------------------------------------------------------------------------------

    def run_flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run on the GPU; outputs are where the first input is.

        Raises MissingDependencyError without a GPU, ArchiveError where the engine does not fit it or the package here.
        """
        return self.runner.run(inputs)

    def latency(self, inputs: Sequence[Tensor]) -> float:
        """Seconds of one run, by CUDA events."""
        return self.runner.latency(inputs)

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every float value inside under its node's name, by an engine built here that gives them all."""
        self._require_gpu()
        names = [spec.name for spec in self.signature.inputs]
        yield from build_layered(self.model, self.info, names).run_named(inputs)

    def run_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Run the ONNX file in ONNX Runtime on the CPU: the same numbers up to rounding, where there is no GPU."""
        outputs = run_onnx(self.model, self.signature.flatten(args, kwargs))
        return self.signature.outputs.unflatten(iter(outputs))

    def check_source(self, program: Program) -> None:
        """Raise ArchiveError where the engine was built from another program than this one."""
        from .backend import TensorRT

        if self.info is None:
            return
        if program.signature != self.signature:
            expected, found = program.signature.describe(), self.signature.describe()
            raise ArchiveError("the engine takes other inputs than the program", expected=expected, found=found)
        for step in TensorRT().passes():
            program = step(program)
        found = program_digest(program)
        if found != self.info.program:
            hint = "lower the program again"
            raise ArchiveError("the engine is of another program", expected=found, found=self.info.program, hint=hint)

    @cached_property
    def runner(self) -> EngineRunner:
        """The engine on the GPU."""
        trt = self._require_gpu()
        names = [spec.name for spec in self.signature.inputs]
        return EngineRunner(trt, load_engine(trt, self.engine), names, self.signature.output_names)

    def _require_gpu(self) -> Any:
        """The package to run with, once the engine is known to fit."""
        if self.info is None:
            hint = f"{INSTALL}, and lower again; or run_onnx, which runs model.onnx on the CPU"
            raise LoweringError("no engine was built", found=str(self.path), hint=hint)
        capability = gpu_capability()
        trt = find_package(self.info.package, capability is not None)
        name, version = (trt.__name__, trt.__version__) if trt is not None else (None, None)
        wrong = misfits(self.info, name, version, capability)
        if capability is None:
            hint = "artifact.run_onnx(...) runs the emitted model.onnx in ONNX Runtime on the CPU"
            raise MissingDependencyError("the engine cannot run here", found="; ".join(wrong), hint=hint)
        if wrong:
            hint = "lower the program again, here"
            if "TensorRT for RTX runs on" in " ".join(wrong):
                hint = "with full TensorRT installed, lower it again here; artifact.run_onnx(...) runs it on the CPU"
            raise ArchiveError("the engine does not fit", found="; ".join(wrong), hint=hint)
        return trt
