"""What a design takes of a part: estimates by formula, before any synthesis.

The formulas follow FINN-R (Blott et al. 2018, arXiv:1809.04570) in form. Their constants are not calibrated: no
synthesis tool has run on these designs. Expect a factor of up to two in look-up tables; multipliers and memory blocks
follow from widths and depths and are closer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

from tersor.ir.requantize_forms import bit_length

from .design import Design, Fold, Process, Wire, in_fabric, is_unrolled
from .graph import (
    Add,
    Constant,
    Depthwise,
    GlobalPool,
    Lookup,
    MatrixVector,
    MaxPool,
    Multiply,
    Reorder,
    SumPool,
    Window,
    acc_bits,
    weight_bits,
)
from .orders import loops
from .requantizer import Form, Requantizer, signed_bits, signed_digits
from .schedule import is_parallel, ring
from .simulate import LATENCY
from .source import offset_bits
from .storage import Storage, fifo_storage, storage_of

CALIBRATION = "uncalibrated: formulas only, no synthesis has run"
ESTIMATES = {
    "cycles": "by the schedule of the kernels; their cycle-level simulation gives interval and latency",
    "latency": f"assumes {LATENCY} cycles from a unit's reads to its writes",
    "fifo": "depths held in the simulation, at those latencies",
    "lut": "by formula, uncalibrated: expect a factor of two",
    "dsp": "by the widths of products, uncalibrated: the tool may share or split them",
    "bram": "by widths and depths of memories, uncalibrated: close where pragmas are followed",
    "clock": "what is usual for the part; no timing was closed",
}
"""What each figure of a report rests on."""
_BLOCKS = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
"""Widths and depths of a memory block of 18 Kb."""
_CONTROL = 80
"""Look-up tables for the counters and handshakes of a process."""
_DSP_WIDTHS = (26, 17)
"""Unsigned bits of the two factors of a multiplier."""


@dataclass(frozen=True)
class Resources:
    """Look-up tables, multipliers, and memory blocks of 18 Kb."""

    lut: int = 0
    dsp: int = 0
    bram: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.lut + other.lut, self.dsp + other.dsp, self.bram + other.bram)

    def items(self) -> list[tuple[str, int]]:
        """Names and amounts."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def memory(width: int, depth: int) -> Resources:
    """A memory of `depth` words of `width` bits."""
    if depth <= 1 or width == 0:
        return Resources()
    if storage_of(depth) is not Storage.BRAM:
        return Resources(lut=ceil(depth / 64) * width)
    return Resources(bram=min(ceil(width / wide) * ceil(depth / deep) for wide, deep in _BLOCKS))


def fifo(wire: Wire, depth: int) -> Resources:
    """A stream: shift registers where it is short."""
    if fifo_storage(depth) is Storage.SHIFT:
        return Resources(lut=wire.width + 20)
    return memory(wire.width, depth) + Resources(lut=40)


def estimate(design: Design, depths: Mapping[str, int]) -> dict[str, Resources]:
    """What each process and the FIFOs that it writes to take, by its name."""
    found = {process.name: process_resources(process) for process in design.processes}
    for process in design.processes:
        for wire in process.writes:
            found[process.name] += fifo(wire, depths.get(wire.stream.name, 2))
    return found


def total(parts: Mapping[str, Resources]) -> Resources:
    """The sum."""
    return sum(parts.values(), Resources())


def process_resources(process: Process) -> Resources:
    """What one process takes, without its FIFOs."""
    rule = _RULES.get(type(process.layer))
    own = rule(process, process.layer) if rule else Resources(lut=sum(wire.width for wire in process.writes))
    return own + Resources(lut=_CONTROL)


def products(count: int, left: int, right: int, fold: Fold) -> Resources:
    """So many multipliers of those widths."""
    if in_fabric(fold, left, right):
        return Resources(lut=count * left * right)
    wide, narrow = max(left, right), min(left, right)
    return Resources(dsp=count * ceil(wide / _DSP_WIDTHS[0]) * ceil(narrow / _DSP_WIDTHS[1]))


def requantizers(requantizer: Requantizer | None, lanes: int, channels: int, acc: int, fold: Fold) -> Resources:
    """The requantizers of a unit: one a lane, with the constants of its channels."""
    if requantizer is None:
        return Resources(lut=lanes * acc)
    plain = requantizer.uniform()
    if plain.forms == {Form.THRESHOLDS}:
        steps = plain.thresholds.shape[1]
        return Resources(lut=lanes * steps * ceil(acc / 2)) + memory(lanes * steps * acc, channels // lanes)
    if channels == lanes:  # every lane has constants of its own: shifts and adders
        return Resources(lut=int(plain.cost.sum()) + lanes * acc)
    constants = plain.multiplier_bits + offset_bits(plain) + 8
    logic = lanes * (4 * acc + (12 * acc if Form.FLOAT in plain.forms else 0))
    own = products(lanes, acc, plain.multiplier_bits, fold)
    return own + Resources(lut=logic) + memory(lanes * constants, channels // lanes if len(plain.form) > 1 else 1)


def _matrix_vector(process: Process, layer: MatrixVector) -> Resources:
    pe, simd, x = process.fold.pe, process.fold.simd, process.reads[0]
    rows, columns = layer.weight.shape
    bits, acc = weight_bits(layer.weight), acc_bits(layer.acc)
    finish = requantizers(layer.requantizer, pe, rows, acc, process.fold) + _biases(layer, pe)
    if is_unrolled(process):
        return finish + _constants(layer, x.stream.bits, acc, process.fold)
    adders = Resources(lut=pe * simd * (x.stream.bits + bits))
    own = products(pe * simd, x.stream.bits, bits, process.fold) + adders + finish
    folds = columns // simd
    if process.fold.streamed:
        return own + memory(x.width, folds) + Resources(lut=600)
    if process.step_count is None:
        return own + memory(x.width, folds) + memory(pe * simd * bits, rows // pe * folds)
    steps, column = process.step_count, max(1, (folds - 1).bit_length())
    vectors = [memory(x.width, 2 * folds)] * pe
    return sum(vectors, own + memory(pe * simd * bits + pe * column + 1, steps))


def _biases(layer: MatrixVector | Depthwise, pe: int) -> Resources:
    width = signed_bits(int(layer.bias.min()), int(layer.bias.max()))
    return memory(pe * width, len(layer.bias) // pe)


def _constants(layer: MatrixVector | Depthwise, x: int, acc: int, fold: Fold) -> Resources:
    """Weights as constants of the circuit. A zero takes nothing, a power of two a wire."""
    digits = signed_digits(layer.weight)
    used = int((digits > 0).sum())
    if fold.fabric:
        return Resources(lut=int(digits.sum()) * (x + 2) + used)
    many = int((digits > 2).sum())
    bits = int(bit_length(abs(layer.weight)).max(initial=1))
    return products(many, x, bits, fold) + Resources(lut=int(digits[digits <= 2].sum()) * (x + 2) + used * acc // 4)


def _depthwise(process: Process, layer: Depthwise) -> Resources:
    pe, simd, (channels, taps) = process.fold.pe, process.fold.simd, layer.weight.shape
    bits, acc, x = weight_bits(layer.weight), acc_bits(layer.acc), layer.x.bits
    finish = requantizers(layer.requantizer, pe, channels, acc, process.fold) + _biases(layer, pe)
    if is_unrolled(process):
        return finish + _constants(layer, x, acc, process.fold)
    own = products(pe * simd, x, bits, process.fold) + Resources(lut=pe * acc + pe * (simd - 1) * (x + bits))
    return own + memory(pe * simd * bits, channels // pe * (taps // simd)) + finish


def _window(process: Process, layer: Window) -> Resources:
    g, x = layer.geometry, process.reads[0]
    folds = layer.x.channels // x.lanes
    if is_parallel(process):
        above, under = memory(x.width, g.padded[1] * folds), memory(x.width, folds)
        lines = sum([above] * (g.span[0] - 1), Resources())
        return sum([under] * (g.span[0] * g.span[1]), lines) + Resources(lut=100 + process.writes[0].width // 2)
    return memory(x.width, g.lines * g.plane[1] * folds) + Resources(lut=150 + 2 * x.width)


def _reorder(process: Process, layer: Reorder) -> Resources:
    x, plan = process.reads[0], ring(process, layer)
    nest = loops(plan.sequence)
    places = Resources(lut=60 * len(nest)) if nest is not None else memory(plan.size.bit_length(), len(plan.sequence))
    return memory(x.width, plan.size) + places + Resources(lut=60)


def _max_pool(process: Process, layer: MaxPool) -> Resources:
    return Resources(lut=2 * process.reads[0].width)


def _sum_pool(process: Process, layer: SumPool | GlobalPool) -> Resources:
    pe, acc = process.fold.pe, acc_bits(layer.acc)
    own = requantizers(layer.requantizer, pe, layer.y.channels, acc, process.fold)
    sums = memory(pe * acc, layer.y.channels // pe) if isinstance(layer, GlobalPool) else Resources()
    return own + sums + Resources(lut=pe * acc + process.reads[0].width)


def _add(process: Process, layer: Add) -> Resources:
    pe, pair = process.fold.pe, layer.pair
    if pair.table is not None:
        return sum([memory(layer.y.bits, pair.table.values.size)] * pe, Resources())
    width = pair.shift + layer.y.bits + 1
    return Resources(lut=pe * (pair.adders * width + 2 * layer.y.bits))


def _multiply(process: Process, layer: Multiply) -> Resources:
    pe, (left, right) = process.fold.pe, layer.reads
    own = products(pe, left.bits + 1, right.bits + 1, process.fold)
    return own + requantizers(layer.requantizer, pe, layer.y.channels, acc_bits(layer.acc), process.fold)


def _constant(process: Process, layer: Constant) -> Resources:
    return memory(process.writes[0].width, process.writes[0].beats)


def _lookup(process: Process, layer: Lookup) -> Resources:
    return Resources(lut=process.fold.pe * layer.y.bits * max(1, 1 << max(layer.x.bits - 6, 0)))


_RULES: dict[type, Callable[[Process, Any], Resources]] = {
    MatrixVector: _matrix_vector,
    Depthwise: _depthwise,
    Window: _window,
    Reorder: _reorder,
    MaxPool: _max_pool,
    SumPool: _sum_pool,
    GlobalPool: _sum_pool,
    Add: _add,
    Multiply: _multiply,
    Lookup: _lookup,
    Constant: _constant,
}
