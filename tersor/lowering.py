"""From a program to an artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tersor.backends.base import Artifact, Backend
from tersor.backends.registry import TARGETS
from tersor.ir.errors import RecipeError
from tersor.ir.program import Program, expect_program
from tersor.passes.base import Pass
from tersor.passes.preferences import Preferences
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.snap_scales import SnapScales


def load(path: str | Path) -> Program:
    """Read the program that `Program.save` wrote to `path`. Raises ArchiveError; no code from the file is run."""
    return Program.load(path)


def load_onnx(path: str | Path) -> Program:
    """Import the ONNX model at `path` onto the operators that `trace` gives.

    Trainable initializers become parameters; names and dynamic dimensions are kept; QuantizeLinear and DequantizeLinear
    become fake-quantize. Raises TraceError or ArchiveError naming the file, and the node where there is one.
    """
    from tersor.frontends.onnx.load import load_onnx as load

    return load(Path(path))


def resolve(target: str | Backend) -> Backend:
    """The backend of a target given by name, as `module:Class`, or as itself; the first two with its default options.

    Raises RecipeError.
    """
    if isinstance(target, str):
        return TARGETS.resolve(target)()
    if not isinstance(target, Backend):
        raise RecipeError(
            "not a target",
            expected=f"one of {', '.join(TARGETS.names())}, or a backend, as OnnxRuntime()",
            found=repr(target),
            hint="call once for each target" if isinstance(target, list | tuple) else None,
        )
    return target


def lower(program: Program, target: str | Backend = "onnxruntime", out: str | Path | None = None) -> Artifact:
    """Lower a program to a target and write the artifact into the folder `out`.

    target: a name, `module:Class`, or the target's own dataclass with options, as `OnnxRuntime(external_data=True)`.
    out: made where it does not exist; None makes a new folder for temporary files, which is the caller's to remove.

    Raises LoweringError listing every node that the target does not take, before anything is written.
    """
    expect_program(program)
    backend = resolve(target)
    program = backend.prepare(program)
    folder = Path(tempfile.mkdtemp(prefix="tersor-")) if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return backend.emit(program, folder)


def quantization(likes: Preferences, calibration: Iterable[Any] | None, **options: Any) -> list[Pass]:
    """Post-training quantization as a target likes it; options: of `Quantize`, where others are wanted."""
    quantize = Quantize.suited(likes, calibration=calibration, **options)
    return [quantize, SnapScales()] if likes.short_multipliers else [quantize]
