"""From a program to an artifact, and from a model to an artifact in one call."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tersor.backends.base import Artifact, Backend
from tersor.backends.registry import TARGETS
from tersor.frontends.dynamic import Dynamic
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.passes.base import Pass
from tersor.passes.manager import PassManager
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
    return TARGETS.resolve(target)() if isinstance(target, str) else target


def lower(program: Program, target: str | Backend = "onnxruntime", out: str | Path | None = None) -> Artifact:
    """Lower a program to a target and write the artifact into the folder `out`.

    target: a name, `module:Class`, or the target's own dataclass with options, as `OnnxRuntime(external_data=True)`.
    out: made where it does not exist; None makes a new folder for temporary files, which is the caller's to remove.

    Raises LoweringError listing every node that the target does not take, before anything is written.
    """
    backend = resolve(target)
    program = backend.prepare(program)
    folder = Path(tempfile.mkdtemp(prefix="tersor-")) if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return backend.emit(program, folder)


def compress(
    model: nn.Module | Program,
    args: Sequence[Any] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Backend = "onnxruntime",
    calibration: Iterable[Any] | None = None,
    passes: Sequence[Pass] | None = None,
    dynamic: Dynamic | None = None,
    out: str | Path | None = None,
) -> Artifact:
    """Trace a model, compress it and lower it.

    model, args, kwargs, dynamic: as for `trace`; a Program is taken as it is.
    calibration: batches for post-training quantization, each what the model is called with. None calibrates on the
        example alone and warns: that is enough to try things out and too little to ship.
    passes: what to run instead of `Quantize`, in the form that the target wants.

    Raises TraceError, CalibrationError, PassError or LoweringError.
    """
    backend = resolve(target)
    program = model if isinstance(model, Program) else trace(model, args, kwargs, dynamic)
    if passes is None and calibration is None:
        warnings.warn("calibrating on the example alone: give calibration=batches of real data", stacklevel=2)
        calibration = [example_batch(program)]
    passes = quantization(backend.preferences, calibration) if passes is None else passes
    return lower(PassManager(passes).run(program).program, backend, out)


def quantization(likes: Preferences, calibration: Iterable[Any] | None) -> list[Pass]:
    """Post-training quantization as a target likes it."""
    quantize = Quantize.suited(likes, calibration=calibration)
    return [quantize, SnapScales()] if likes.short_multipliers else [quantize]


def example_batch(program: Program) -> Any:
    """The inputs that a program was traced with, as a batch of calibration data; made up where it has none."""
    from tersor.ir.example import example_of

    inputs = iter(example_of(program))
    args = program.signature.args.unflatten(inputs)
    kwargs = program.signature.kwargs.unflatten(inputs)
    named = dict(zip(program.signature.parameters, args, strict=False))
    return {**named, **kwargs} if kwargs else tuple(args)
