"""What a design is made of, takes and gives: `report.json`, and the same to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from .design import Process, is_unrolled
from .fifos import Fifos
from .folding import Choice
from .graph import Depthwise, MatrixVector, acc_bits, weight_bits
from .parts import USABLE, Part
from .requantizer import Requantizer
from .resources import CALIBRATION, ESTIMATES, Resources, estimate, total
from .schedule import turns

_KINDS = ("lut", "dsp", "bram")


@dataclass(frozen=True)
class LayerRow:
    """One process. cycles: of a frame. bits: of what comes in, weights, accumulator, what goes out.

    multiplier: bits of the requantizer's, None where there is none. fifo: depth of what it writes to, in beats.
    share: of the blocks of weights that are computed, where zeros are skipped. Resources are estimates.
    """

    name: str
    node: str
    kind: str
    pe: int
    simd: int
    cycles: int
    macs: int
    bits: tuple[int | None, int | None, int | None, int | None]
    multiplier: int | None
    fifo: int
    share: float
    weights: str
    lut: int
    dsp: int
    bram: int

    def cells(self) -> list[object]:
        """What the table shows of it."""
        bits = "/".join("-" if width is None else str(width) for width in self.bits)
        multiplier = "-" if self.multiplier is None else self.multiplier
        head = [self.name, self.kind, self.pe, self.simd, self.cycles, bits, multiplier, self.fifo]
        return [*head, f"{self.share:.0%}", self.lut, self.dsp, self.bram]


@dataclass(frozen=True)
class DesignReport:
    """A whole design. interval and latency: cycles, by the cycle-level simulation; formula: the interval by formula."""

    part: Part
    clock: float
    interval: int
    formula: int
    latency: int
    total: Resources
    layers: tuple[LayerRow, ...]
    calibration: str = CALIBRATION

    @property
    def frames_per_second(self) -> float:
        """At the clock."""
        return self.clock * 1e6 / max(self.interval, 1)

    @property
    def latency_ms(self) -> float:
        """From the first value of a frame to the last of its result."""
        return self.latency / self.clock / 1e3

    def to_json(self) -> str:
        """`report.json`."""
        derived = {"frames_per_second": self.frames_per_second, "latency_ms": self.latency_ms, "shares": self.shares()}
        return json.dumps({**asdict(self), **derived, "estimates": ESTIMATES}, indent=1)

    def shares(self) -> dict[str, float]:
        """What it takes of the part."""
        return {kind: amount / getattr(self.part, kind) for kind, amount in self.total.items()}

    def to_text(self) -> str:
        """`report.txt`."""
        usable = ", ".join(f"{share:.0%} of {kind}" for kind, share in USABLE.items())
        taken = ", ".join(
            f"{kind} {amount} ({amount / getattr(self.part, kind):.0%})" for kind, amount in self.total.items()
        )
        head = [
            f"{self.part.name} ({self.part.number}) at {self.clock:g} MHz",
            f"  frame to frame  {self.interval} cycles, {self.frames_per_second:,.0f} frames a second",
            f"  by formula      {self.formula} cycles",
            f"  latency         {self.latency} cycles, {self.latency_ms:.3f} ms",
            f"  estimated       {taken}",
            f"                  {self.calibration}",
            f"                  a design may take {usable}",
            "",
        ]
        basis = [f"  {name.ljust(8)}{text}" for name, text in ESTIMATES.items()]
        return "\n".join([*head, *self._table(), "", "All of this is estimated:", *basis, ""])

    def _table(self) -> list[str]:
        titles = ["layer", "kind", "pe", "simd", "cycles", "bits in/w/acc/out", "mult", "fifo", "share", *_KINDS]
        rows = [titles, *([str(cell) for cell in row.cells()] for row in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def report_of(choice: Choice, fifos: Fifos, part: Part, clock: float) -> DesignReport:
    """The report of a design."""
    resources = estimate(choice.design, fifos.depths)
    rows = tuple(_row(process, fifos.depths, resources[process.name]) for process in choice.design.processes)
    return DesignReport(part, clock, fifos.timing.interval, fifos.formula, fifos.timing.latency, total(resources), rows)


def _row(process: Process, depths: Mapping[str, int], taken: Resources) -> LayerRow:
    layer = process.layer
    acc = getattr(layer, "acc", None)
    bits = (
        process.reads[0].stream.bits if process.reads else None,
        weight_bits(layer.weight) if isinstance(layer, MatrixVector | Depthwise) else None,
        None if acc is None else acc_bits(acc),
        process.writes[0].stream.bits,
    )
    requantizer: Requantizer | None = getattr(layer, "requantizer", None)
    return LayerRow(
        name=process.name,
        node=layer.node if layer else process.writes[0].stream.node,
        kind=layer.kind if layer else "convert",
        pe=process.fold.pe,
        simd=process.fold.simd,
        cycles=turns(process),
        macs=layer.macs if layer else 0,
        bits=bits,
        multiplier=None if requantizer is None else requantizer.uniform().multiplier_bits,
        fifo=max(depths.get(wire.stream.name, 0) for wire in process.writes),
        share=_share(process),
        weights=_place(process),
        **dict(taken.items()),
    )


def _place(process: Process) -> str:
    """Where a unit's weights are."""
    if not isinstance(process.layer, MatrixVector | Depthwise):
        return ""
    return "constants" if is_unrolled(process) else "streamed" if process.fold.streamed else "on chip"


def _share(process: Process) -> float:
    """The share of a unit's blocks of weights that its schedule has."""
    if not isinstance(process.layer, MatrixVector):
        return 1.0
    weight = process.layer.weight
    if is_unrolled(process):
        return np.count_nonzero(weight) / weight.size
    if process.step_count is None:
        return 1.0
    blocks: int = weight.shape[0] // process.fold.pe * (weight.shape[1] // process.fold.simd)
    return process.step_count / blocks
