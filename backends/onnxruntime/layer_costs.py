"""What each layer costs in ONNX Runtime, measured here by its own profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.ir.example import example_of
from tersor.ir.program import Program

from ..clock import Clock
from ..layer_costs import LayerCosts
from ..onnx.emit import emit_model
from ..onnx.file import write_model
from .audit import origin_of
from .session import open_session, options

if TYPE_CHECKING:
    from .backend import OnnxRuntime

_RUNS = 12
_SECONDS = 0.15
_KERNEL = "_kernel_time"


def measure(program: Program, backend: OnnxRuntime) -> LayerCosts:
    """Milliseconds by node on the program's example: the fastest of a profile; in all, of calls without one.

    What belongs to no node of the program, as conversions at the edges, stands under `other`.
    """
    threads = backend.threads or 1
    with tempfile.TemporaryDirectory(prefix="tersor-costs-") as name:
        folder = Path(name)
        write_model(emit_model(program, backend.onnx_options), folder, external=backend.external_data)
        total, spread = _timed(folder / "model.onnx", program, threads)
        events = _profile(folder, program, threads)
    known = {node.name for node in program.graph.nodes}
    nodes: dict[str, float] = defaultdict(float)
    for kernel, times in events.items():
        origin = origin_of(kernel)
        nodes[origin if origin in known else "other"] += min(times) / 1e3
    source = f"ONNX Runtime's profile on this machine, {threads} thread{'s' if threads > 1 else ''}"
    return LayerCosts("ms", Clock.MEASURED, total * 1e3, dict(nodes), 1e-3, source, spread=spread * 1e3)


def _timed(model: Path, program: Program, threads: int) -> tuple[float, float]:
    """Seconds of the fastest call, which others on the machine disturb least, and the spread of the middle half."""
    session = open_session(model, threads)
    feed = _feed(session, program)
    samples: list[float] = []
    session.run(None, feed)
    deadline = time.perf_counter() + _SECONDS
    while len(samples) < _RUNS or time.perf_counter() < deadline:
        started = time.perf_counter()
        session.run(None, feed)
        samples.append(time.perf_counter() - started)
    first, _, third = statistics.quantiles(samples, n=4)
    return min(samples), third - first


def _feed(session: Any, program: Program) -> dict[str, Any]:
    names = [given.name for given in session.get_inputs()]
    return {name: value.detach().cpu().numpy() for name, value in zip(names, example_of(program), strict=True)}


def _profile(folder: Path, program: Program, threads: int) -> Mapping[str, list[float]]:
    """Microseconds of each run of each kernel, by the kernel's name; the first runs are left out."""
    settings = options(threads)
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / "profile")
    session = open_session(folder / "model.onnx", settings=settings)
    feed = _feed(session, program)
    for _ in range(_RUNS):
        session.run(None, feed)
    written: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    events: dict[str, list[float]] = defaultdict(list)
    for event in written:
        if event.get("cat") == "Node" and str(event["name"]).endswith(_KERNEL):
            events[event["name"].removesuffix(_KERNEL)].append(float(event["dur"]))
    return {kernel: times[2:] or times for kernel, times in events.items()}
