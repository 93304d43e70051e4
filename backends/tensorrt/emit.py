"""A program to the files of an artifact: ONNX, an engine, what the engine is, and a script that builds it elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.ir.program import Program
from tersor.ir.sparsity import NM
from tersor.ir.stage import Stage

from ..base import LoweringReport
from ..draft import draft_folder
from ..manifest import write_manifest
from ..onnx.emit import emit_model
from ..onnx.file import write_model
from ..sparsity import sparsity_notes
from .artifact import TensorRTArtifact
from .audit import UNREAD, as_audit_rows, audit, sparsity_note
from .build_engine import INSTALL, gpu_capability, is_installed
from .engine_file import NAME, PLAN, EngineInfo, program_digest, write_info
from .inspector import kernels_of_inspector
from .kernels import Kernel
from .plan import kernels_of_plan
from .process import run_build
from .profiles import complete, shapes

if TYPE_CHECKING:
    from .backend import TensorRT

SCRIPT = "build_engine.py"
REQUEST = "build.json"

_COMPUTED = "computed: TensorRT has kernels for 2:4 alone"


def emit(program: Program, out: Path, backend: TensorRT) -> TensorRTArtifact:
    """Write `model.onnx`, `build_engine.py`, `build.json` and, where there is a builder, `model.engine`, `engine.json`.

    Everything is made in a folder beside and takes its place at the end, so that what fails leaves what was there.
    Raises LoweringError where TensorRT refuses, with its words, the node and the user's line.
    """
    profiles = [shapes(program.signature, profile) for profile in complete(program, backend.profiles)]
    model = emit_model(program, backend.onnx_options(program))
    out.mkdir(parents=True, exist_ok=True)
    with draft_folder(out) as draft:
        written = write_model(model, draft, external=backend.external_data)
        written += _write_script(draft, _request(program, backend, profiles))
        notes = _notes(program, backend)
        info = _build(program, draft, out, backend, profiles, notes)
        if info is not None:
            written += [draft / PLAN, write_info(draft, info)]
        placed = _place(written, out)
    layers = info.layers if info is not None else ()
    sizes = {file.name: file.stat().st_size for file in placed}
    report = LoweringReport(backend.name, as_audit_rows(layers), sizes, tuple(notes))
    write_manifest(out, program.signature, report, placed)
    return TensorRTArtifact(out, program.signature, report, info)


def _request(program: Program, backend: TensorRT, profiles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `build_engine.py` reads: plain data."""
    package = backend.builder.value if backend.builder.value in ("tensorrt", "tensorrt_rtx") else "auto"
    return {
        "model": "model.onnx",
        "engine": PLAN,
        "package": package,
        "capabilities": list(backend.compute_capabilities),
        "profiles": list(profiles),
        "sparse": is_sparse(program) if backend.sparse is None else backend.sparse,
        "workspace": backend.workspace,
        "timing_cache": backend.timing_cache,
    }


def is_sparse(program: Program) -> bool:
    """Whether the sparsity table promises weights of the one pattern that sparse kernels take."""
    return NM(2, 4) in program.sparsity.values()


def _write_script(folder: Path, request: Mapping[str, Any]) -> list[Path]:
    script, options = folder / SCRIPT, folder / REQUEST
    script.write_text(files(__package__).joinpath(SCRIPT).read_text())
    options.write_text(json.dumps(request, indent=1))
    return [script, options]


def _build(
    program: Program,
    draft: Path,
    out: Path,
    backend: TensorRT,
    profiles: Sequence[Mapping[str, Any]],
    notes: list[str],
) -> EngineInfo | None:
    """Build, audit, and note what there is to note; None without a builder."""
    from .backend import Builder

    if backend.builder is Builder.NONE:
        notes.append(f"no engine was asked for; {_elsewhere()}")
        return None
    if not is_installed(backend.builder.value, gpu_capability() is not None):
        notes.append(f"no builder is installed: {INSTALL}; or {_elsewhere()}")
        return None
    _carry_cache(backend.timing_cache, out, draft)
    result = run_build(program, draft)
    _carry_cache(backend.timing_cache, draft, out)
    kernels = _kernels(draft, result)
    info = EngineInfo(
        package=result["package"],
        version=result["version"],
        capabilities=tuple(result["capabilities"]),
        gpu=result["gpu"],
        program=program_digest(program),
        seconds=result["seconds"],
        profiles=tuple(profiles),
        layers=audit(program, kernels) if kernels else (),
    )
    notes += [f"built by {info.package} {info.version} in {info.seconds:.1f} s for {', '.join(info.capabilities)}"]
    notes += [] if kernels else [UNREAD]
    notes += [note for note in (sparsity_note(program, info.layers),) if note is not None]
    notes += sparsity_notes(program, lambda pattern: None if pattern == NM(2, 4) else _COMPUTED)
    return info


def _carry_cache(name: str | None, source: Path, target: Path) -> None:
    """A timing cache that stands in the artifact's folder moves along with it."""
    if name is not None and Path(name).name == name and (source / name).is_file():
        shutil.copyfile(source / name, target / name)


def _kernels(folder: Path, result: Mapping[str, Any]) -> tuple[Kernel, ...]:
    """What the inspector says where it could ask, else what the plan itself says."""
    return kernels_of_inspector(result["layers"] or {}) or kernels_of_plan(folder / PLAN)


def _elsewhere() -> str:
    return f"build with: python {SCRIPT}, on a machine with TensorRT"


def _notes(program: Program, backend: TensorRT) -> list[str]:
    """What placement changed, so that it is never silent."""
    if program.stage is Stage.FLOAT:
        return ["the program is not quantized"]
    names = {step.name for step in backend.passes()}
    return [note for entry in program.history if entry.name in names for note in entry.notes]


def _place(written: Sequence[Path], out: Path) -> list[Path]:
    placed = [file.replace(out / file.name) for file in written]
    stale = {*out.glob("model-*.data"), *(out / name for name in (PLAN, NAME))} - set(placed)
    for file in stale:
        file.unlink(missing_ok=True)
    return placed
