"""A program to the files of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import LoweringReport
from ..manifest import write_manifest
from ..onnx.emit import emit_model
from ..onnx.file import write_model
from ..sparsity import sparsity_notes
from .artifact import OnnxRuntimeArtifact
from .audit import audit
from .float_kernels import keep_float

if TYPE_CHECKING:
    from .backend import OnnxRuntime


def emit(program: Program, out: Path, backend: OnnxRuntime) -> OnnxRuntimeArtifact:
    """Write `model.onnx` and `artifact.json`. Raises LoweringError, and leaves what was there, where that fails."""
    model = emit_model(program, backend.onnx_options)
    keep_float(model)
    out.mkdir(parents=True, exist_ok=True)
    files = write_model(model, out, external=backend.external_data)
    rows = audit(program, out / "model.onnx") if backend.audit else ()
    said = tuple(f"{entry.name}: {note}" for entry in program.history for note in entry.notes)
    notes = said if program.stage is not Stage.FLOAT else ("the program is not quantized",)
    notes += sparsity_notes(program, lambda pattern: "ONNX Runtime has no kernels for zeros and computes them")
    report = LoweringReport(backend.name, rows, {file.name: file.stat().st_size for file in files}, notes)
    write_manifest(out, program.signature, report, files)
    return OnnxRuntimeArtifact(out, program.signature, report, backend.threads)
