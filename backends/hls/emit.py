"""A program of the integer stage as a project for Vitis HLS, with everything that describes it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tersor.ir.program import Program

from ..base import AuditRow, LoweringReport
from ..batching import batched
from ..draft import draft_folder
from ..manifest import write_manifest
from ..sparsity import sparsity_notes
from .artifact import INTERFACE, SOURCES, HlsArtifact, ports_to_json
from .backend import Hls
from .build import Builder
from .design import Design
from .fifos import size_fifos
from .folding import Choice, fastest, for_cycles, from_json, to_json
from .golden import golden_vectors
from .graph import Graph
from .parts import find_part
from .project import Project
from .qonnx import qonnx_model
from .report import DesignReport, report_of
from .rules import RULES
from .scripts import build_script
from .toolchain import KERNELS, SIMULATION

FOLDING = "folding.json"
QONNX = "model.qonnx.onnx"

_SKIPPED = "runs of zeros as wide as SIMD are skipped, and a layer that is unrolled drops each"


def emit(program: Program, out: Path, options: Hls) -> HlsArtifact:
    """Write the project into `out`: every file under a temporary name first, the manifest last."""
    part = find_part(options.part)
    graph = Builder(program, RULES).build().graph()
    choice = choose(graph, options)
    fifos = size_fifos(choice.design)
    report = report_of(choice, fifos, part, options.clock or part.clock)
    project = Project(options.top, choice.design, fifos.depths)
    with draft_folder(out) as draft:
        _write_sources(draft / SOURCES, project)
        (draft / SOURCES / "build.tcl").write_text(build_script(options.top, part, report.clock))
        (draft / SOURCES / "golden.txt").write_text(golden_vectors(program, graph.inputs, graph.outputs))
        (draft / INTERFACE).write_text(ports_to_json(graph.inputs, graph.outputs))
        (draft / FOLDING).write_text(to_json(choice.design))
        (draft / "report.json").write_text(report.to_json())
        (draft / "report.txt").write_text(report.to_text())
        (draft / QONNX).write_bytes(qonnx_model(program).SerializeToString())
        written = _move(draft, out)
    notes = sparsity_notes(program, lambda pattern: _SKIPPED)
    files = {path.name: path.stat().st_size for path in written}
    summary = _summary(options.top, choice.design, report, files, notes)
    artifact = HlsArtifact(out, batched(program.signature, program.outputs), summary)
    kept = [path for path in written if path.name != FOLDING]  # which is there to be edited
    write_manifest(out, artifact.signature, summary, kept)
    return artifact


def choose(graph: Graph, options: Hls) -> Choice:
    """The folding that the options ask for. Raises LoweringError."""
    part = find_part(options.part)
    if options.folding is not None:
        return from_json(graph, Path(options.folding))
    return fastest(graph, part) if options.cycles is None else for_cycles(graph, options.cycles, part)


def _write_sources(folder: Path, project: Project) -> None:
    (folder / "layers").mkdir(parents=True)
    for name, text in project.files().items():
        (folder / name).write_text(text)
    for source, target in ((KERNELS, "kernels"), (SIMULATION, "simulation")):
        (folder / target).mkdir()
        for header in sorted(source.glob("*.h")):
            shutil.copy(header, folder / target / header.name)


def _move(draft: Path, out: Path) -> list[Path]:
    """Into place: files over old ones, and the folder of sources instead of an old one."""
    sources = out / SOURCES
    if sources.exists():
        sources.rename(draft / "replaced")
    (draft / SOURCES).rename(sources)
    return [path.replace(out / path.name) for path in sorted(draft.iterdir()) if path.is_file()]


def _summary(
    top: str, design: Design, report: DesignReport, files: dict[str, int], sparsity: tuple[str, ...]
) -> LoweringReport:
    rows = tuple(
        AuditRow(row.node, row.kind, f"int{max(row.bits[0] or 0, row.bits[1] or 0)}", row.macs)
        for row, process in zip(report.layers, design.processes, strict=True)
        if process.layer is not None
    )
    taken = ", ".join(f"{kind} {share:.0%}" for kind, share in report.shares().items())
    notes = (
        f"top function {top}",
        f"{report.interval} cycles a frame, {report.frames_per_second:,.0f} frames a second at {report.clock:g} MHz",
        f"latency {report.latency_ms:.3f} ms",
        f"of {report.part.name}, estimated: {taken}",
        report.calibration,
        *sparsity,
    )
    return LoweringReport("hls", rows, files, notes)
