"""Where a quantized program loses accuracy: each quantized node's own error, and the error it causes at the output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from tersor.ir.errors import PassError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.origin import Origin
from tersor.ir.printer import operator_name
from tersor.ir.program import Program
from tersor.passes.compare import node_values
from tersor.passes.progress import track
from tersor.passes.quantization.calibration_data import required
from tersor.passes.quantization.injection import Injection, quantizers_of
from tersor.passes.report import as_text, decibels

_MATTER = 0.5
_WIDE = 110
"""The columns of text from which on ranges have room."""
_RANGES = ("grid", "seen")
_MOST = 5


@dataclass(frozen=True)
class NodeAnalysis:
    """One quantized node.

    precision: the grids of what it reads: `a8 w8`, `w4/32` for a weight in blocks of 32, `dynamic`.
    own: SQNR in dB of its result when only it is quantized and what it reads is exact.
    output: SQNR in dB of the program's outputs when only this node is quantized; inf where they do not move.
    here: SQNR in dB of its result in the whole quantized program, errors before it included.
    share: its part of the noise that all nodes, one by one, cause at the outputs.
    low, high: the range of the grid of the activation it reads; seen_low, seen_high: the values seen. None where it
        reads
        none on a static grid.
    clipped: the share of those values that lie beyond the grid.
    """

    node: str
    operator: str
    module: str
    precision: str
    own: float
    output: float
    here: float
    share: float
    low: float | None = None
    high: float | None = None
    seen_low: float | None = None
    seen_high: float | None = None
    clipped: float | None = None


@dataclass(frozen=True)
class Analysis:
    """How a quantized program differs from its reference.

    name: of the program. sqnr: in dB, of all outputs together. rows: every quantized node, in graph order.
    """

    name: str
    sqnr: float
    rows: tuple[NodeAnalysis, ...]

    @property
    def worst(self) -> tuple[NodeAnalysis, ...]:
        """The few that matter: the worst first, until they make up half of the noise, five at most."""
        found: list[NodeAnalysis] = []
        for row in sorted(self.rows, key=lambda row: -row.share):
            if len(found) == _MOST or sum(r.share for r in found) >= _MATTER:
                break
            found.append(row)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinity as text, which JSON lacks."""
        rows = [{key: _plain(value) for key, value in asdict(row).items()} for row in self.rows]
        return {"name": self.name, "sqnr": _plain(self.sqnr), "worst": [r.node for r in self.worst], "nodes": rows}

    def save(self, path: str | Path) -> Path:
        """Write a picture, a bar a node: `.html` or `.svg`, or `.png` where matplotlib is installed."""
        from .analysis_picture import save

        return save(self, Path(path))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A row a node; ranges are left out where the console is narrow."""
        wide = options.max_width >= _WIDE
        title = f"{self.name}: outputs at {decibels(self.sqnr)}"
        table = Table(title=title, header_style="bold", caption=self._caption())
        for heading in (
            "node",
            "precision",
            "own",
            "at output",
            "here",
            "share",
            *(_RANGES if wide else ()),
            "clipped",
        ):
            table.add_column(heading, justify="left" if heading in ("node", "precision") else "right", no_wrap=True)
        marked = {row.node for row in self.worst}
        for row in self.rows:
            spans = (_span(row.low, row.high), _span(row.seen_low, row.seen_high)) if wide else ()
            clipped = "" if row.clipped is None else f"{row.clipped:.2%}"
            table.add_row(
                row.node, row.precision, *(decibels(value) for value in (row.own, row.output, row.here)),
                f"{row.share:.1%}", *spans, clipped, style="bold red" if row.node in marked else "",
            )  # fmt: skip
        yield table

    def _caption(self) -> str:
        worst = self.worst
        if not worst:
            return "no node moves the outputs"
        total = sum(row.share for row in worst)
        return f"{', '.join(row.node for row in worst)}: {total:.0%} of the noise at the outputs"

    def __str__(self) -> str:
        return as_text(self)


def analyze(
    quantized: Program, batches: Iterable[Any], *, reference: Program | None = None, count: int = 4
) -> Analysis:
    """Find the nodes of a quantized program that cost accuracy, comparing with float layer by layer.

    quantized: a program at stage fake_quant. batches: as for calibration; the first `count` are used, all values of one
        at a time are held in memory. Time is about that of half a run for each quantized node and batch.
    reference: the float program that it was made from, which gives the exact value of each layer. None compares with
        the
        quantized program's own weights off their grids: the same, unless weights were changed for good, as by GPTQ.

    Errors at the outputs are those of one node quantized at a time. They nearly add up where noise is small.

    Raises PassError where nothing is quantized, CalibrationError where data is missing or does not fit.
    """
    units = [node for node in quantized.graph.nodes if quantizers_of(node)]
    if not units:
        raise PassError("nothing is quantized in this program", hint="analyze the result of Quantize")
    gathered = {unit: _Sums() for unit in units}
    whole = _Ratio()
    for inputs in track(required(quantized, batches, count), "analyze", count):
        exact = None if reference is None else _values(reference, inputs)
        injection = Injection(quantized, inputs, exact)
        outputs = [injection.values[node] if exact is None else None for node in quantized.outputs]
        if reference is not None:
            with torch.no_grad():
                outputs = list(reference.run(inputs))
        for unit, found in _values_of(quantized, inputs, units).items():
            gathered[unit].here.add(injection.exact[unit], found)
        with torch.no_grad():
            for left, right in zip(outputs, quantized.run(inputs), strict=True):
                whole.add(left, right)
        for unit in units:
            gathered[unit].add(injection, unit)
    noise = sum(sums.output.noise for sums in gathered.values())
    rows = tuple(_row(unit, gathered[unit], noise) for unit in units)
    return Analysis(quantized.name, whole.decibels, rows)


@dataclass
class _Ratio:
    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: Any, found: Any) -> None:
        if isinstance(exact, Tensor) and exact.is_floating_point():
            a, b = exact.detach().double(), found.detach().double()
            usable = torch.isfinite(a) & torch.isfinite(b)
            self.signal += float(a[usable].square().sum())
            self.noise += float((a[usable] - b[usable]).square().sum())

    @property
    def decibels(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@dataclass
class _Sums:
    own: _Ratio = field(default_factory=_Ratio)
    output: _Ratio = field(default_factory=_Ratio)
    here: _Ratio = field(default_factory=_Ratio)
    low: float = math.inf
    high: float = -math.inf
    beyond: int = 0
    count: int = 0
    span: tuple[float, float] | None = None

    def add(self, injection: Injection, unit: fx.Node) -> None:
        value = injection.quantized(unit)
        self.own.add(injection.exact[unit], value)
        errors = injection.output_errors(unit, value)
        for output, error in zip(injection.program.outputs, errors, strict=True):
            exact = injection.values[output]
            if isinstance(exact, Tensor) and exact.is_floating_point():
                usable = torch.isfinite(exact) & torch.isfinite(error)
                self.output.signal += float(exact[usable].double().square().sum())
                self.output.noise += float(error[usable].square().sum()) if error.dim() else 0.0
        for quantizer in quantizers_of(unit):
            if quantizer.target is FAKE_QUANTIZE and injection.program.constant(quantizer.args[0]) is None:
                self._range(injection, quantizer)

    def _range(self, injection: Injection, quantizer: fx.Node) -> None:
        source, scale, zero, axis, low, high = quantizer.args
        values = injection.exact[source]  # type: ignore[index]  # a node
        step, offset = (injection.values[node] for node in (scale, zero))  # type: ignore[index]  # nodes
        if axis is not None or not values.numel():
            return
        ends = float((low - offset) * step), float((high - offset) * step)
        finite = values[values.abs() < 1e30]
        self.span = ends if self.span is None else (min(self.span[0], ends[0]), max(self.span[1], ends[1]))
        if finite.numel():
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        half = float(step) / 2
        self.beyond += int(((finite < ends[0] - half) | (finite > ends[1] + half)).sum())
        self.count += finite.numel()


def _values(program: Program, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def visit(node: fx.Node, value: Any) -> None:
        if node.op == "call_function" and isinstance(value, Tensor):
            found[node.name] = value

    node_values(program, inputs, visit)
    return found


def _values_of(program: Program, inputs: Sequence[Tensor], wanted: Sequence[fx.Node]) -> dict[fx.Node, Any]:
    chosen = set(wanted)
    found: dict[fx.Node, Any] = {}

    def visit(node: fx.Node, value: Any) -> None:
        if node in chosen:
            found[node] = value

    node_values(program, inputs, visit)
    return found


def _row(unit: fx.Node, sums: _Sums, noise: float) -> NodeAnalysis:
    origin = Origin.of(unit)
    ranges = (None,) * 5
    if sums.span is not None and sums.count:
        ranges = (*sums.span, sums.low, sums.high, sums.beyond / sums.count)  # type: ignore[assignment]  # floats
    return NodeAnalysis(
        unit.name,
        operator_name(unit.target),
        "" if origin is None else origin.module,
        precision_of(unit),
        sums.own.decibels,
        sums.output.decibels,
        sums.here.decibels,
        sums.output.noise / noise if noise else 0.0,
        *ranges,
    )


def precision_of(unit: fx.Node) -> str:
    """The grids that a node reads: `a8 w8`, `w4/32` for a weight in blocks of 32, `dynamic`."""
    parts = []
    for quantizer in quantizers_of(unit):
        constant = getattr(quantizer.args[0], "op", "") == "get_attr"
        if quantizer.target is FAKE_QUANTIZE:
            bits = (int(quantizer.args[5]) + 1).bit_length()  # type: ignore[arg-type]  # an int
            parts.append(f"{'w' if constant else 'a'}{bits}")
        elif quantizer.target is FAKE_QUANTIZE_BLOCKS:
            bits = (int(quantizer.args[6]) + 1).bit_length()  # type: ignore[arg-type]  # an int
            parts.append(f"w{bits}/{quantizer.args[4]}")
        elif quantizer.target is FAKE_QUANTIZE_DYNAMIC:
            parts.append("dynamic")
    return " ".join(dict.fromkeys(parts))


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3g} .. {high:.3g}"


def _plain(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
