"""Sessions of ONNX Runtime. The package is loaded here, when the first one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tersor.ir.errors import ArchiveError, MissingDependencyError

_WHOLE = (1, 24)
"""The version from which ONNX Runtime has kernels for all of opset 23: 1.23 cannot quantize in it."""

_OLDER = "update onnxruntime, or lower the program with OnnxRuntime(opset=21), which older versions run"

_ERRORS = 3
"""The severity from which ONNX Runtime logs."""


def options(threads: int | None = None, *, optimize: bool = True) -> Any:
    """Session options: None threads lets ONNX Runtime choose. Raises MissingDependencyError."""
    runtime = _runtime()
    found = runtime.SessionOptions()
    found.log_severity_level = _ERRORS
    level = runtime.GraphOptimizationLevel
    found.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if threads is not None:
        found.intra_op_num_threads = threads
        found.inter_op_num_threads = 1
    return found


def open_session(path: Path, threads: int | None = None, *, optimize: bool = True, settings: Any = None) -> Any:
    """An InferenceSession on the CPU. Raises ArchiveError where the file cannot be loaded, MissingDependencyError."""
    settings = settings or options(threads, optimize=optimize)
    try:
        return _runtime().InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own, made at run time
        hint = _OLDER if "Could not find an implementation" in str(error) else None
        raise ArchiveError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}", hint=hint) from error


def newest_opset(opsets: tuple[int, int]) -> int:
    """The second of two opsets where the installed ONNX Runtime runs it, else the first."""
    major, minor = _runtime().__version__.split(".")[:2]
    return opsets[(int(major), int(minor)) >= _WHOLE]


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime is not installed", hint="pip install onnxruntime") from error
    return onnxruntime
