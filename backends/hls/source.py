"""The C++ of a design: for each layer its constants, and the call of its kernel with named parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.ir.requantize_forms import Ints

from .arrays import Array
from .design import Process, Wire, in_fabric, is_unrolled
from .graph import (
    Add,
    Concat,
    Constant,
    Depthwise,
    Fork,
    Geometry,
    GlobalPool,
    Lookup,
    MatrixVector,
    MaxPool,
    Multiply,
    Reorder,
    Select,
    SumPool,
    Window,
    acc_bits,
    weight_bits,
)
from .orders import loops
from .requantizer import Form, Requantizer, signed_bits
from .schedule import is_parallel, ring

_LEAST_TOTAL = 11
"""Holds what 8 bits and a zero point of 8 bits can differ by."""


@dataclass(frozen=True)
class Code:
    """The C++ of one process.

    kernel: the function, of the file `header`. shape: its parameters by name. arrays: what follows the streams.
    requantize: the struct that finishes sums. memory: the type of what is read from outside the chip.
    """

    kernel: str
    header: str
    shape: Mapping[str, object]
    arrays: tuple[Array, ...] = ()
    requantize: str | None = None
    memory: str | None = None


def code(process: Process) -> Code:
    """The C++ of one process."""
    if process.layer is None:
        return _convert(process)
    return _WRITERS[type(process.layer)](process, process.layer)


# -- requantization --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Circuit:
    """A requantizer in C++: the struct, its parameters, the type of a channel's constants, and their values."""

    struct: str
    shape: dict[str, object]
    kind: str
    constants: list[Any]


def circuit(process: Process, layer: MatrixVector | Depthwise | SumPool | GlobalPool | Multiply) -> _Circuit:
    """The requantizer of a layer; without one the accumulator itself."""
    requantizer, acc, y = layer.requantizer, layer.acc, process.writes[0]
    width = acc_bits(acc)
    shape: dict[str, object] = {"ACC": width, "OUT": y.stream.bits, "BASE": y.stream.low}
    if requantizer is None:
        return _Circuit("keep_accumulator", shape, "no_constants", [])
    plain = requantizer.uniform()
    shape["LEAST"] = plain.quant_min
    if plain.forms == {Form.THRESHOLDS}:
        shape["STEPS"] = plain.thresholds.shape[1]
        rows = [[row] for row in plain.thresholds.tolist()]
        return _Circuit("requantize_thresholds", shape, f"threshold_constants<{width + 1}, {shape['STEPS']}>", rows)
    names = {frozenset({Form.MULTIPLY}): "multiply", frozenset({Form.FLOAT}): "float"}
    bits = max(plain.multiplier_bits, 1)
    fixed = len(plain.form) == 1 or process.fold.pe == len(plain.form)  # each multiplier is a constant of the circuit
    shape |= {
        "MOST": plain.quant_max, "ZERO": plain.zero_point, "TOTAL": total_bits(plain, acc), "MULTIPLIER": bits,
        "SCALE_FABRIC": int(fixed or in_fabric(process.fold, width, bits)),
    }  # fmt: skip
    columns = plain.multiplier, plain.offset, plain.shift, plain.even, plain.form == Form.FLOAT
    rows = [list(map(int, row)) for row in zip(*columns, strict=True)]
    kind = f"multiply_constants<{bits}, {offset_bits(plain)}>"
    return _Circuit(f"requantize_{names.get(plain.forms, 'mixed')}", shape, kind, rows)


def total_bits(requantizer: Requantizer, acc: tuple[int, int]) -> int:
    """The width of a product with its offset."""
    multiplier, offset = requantizer.multiplier.tolist(), requantizer.offset.tolist()
    ends = [end * m + r for m, r in zip(multiplier, offset, strict=True) for end in acc]
    needed = signed_bits(min(ends), max(ends))
    if Form.FLOAT in requantizer.forms:
        needed = max(needed, acc_bits(acc) + requantizer.multiplier_bits + 1)
    return max(needed + 1, signed_bits(requantizer.quant_min - 256, requantizer.quant_max + 256))


def offset_bits(requantizer: Requantizer) -> int:
    """The width of the offsets."""
    return signed_bits(int(requantizer.offset.min()), int(requantizer.offset.max()))


def _channels(circuit: _Circuit, channels: int, pe: int) -> Array:
    """Constants of every channel, arranged as folds of `pe`; one is repeated where all share it."""
    rows = circuit.constants
    if not rows:
        folds: list[Any] = [[[] for _ in range(pe)] for _ in range(channels // pe)]
        return Array(circuit.kind, "requantize_with", (channels // pe, pe), folds, outside=True)
    rows = rows * channels if len(rows) == 1 else rows
    folds = [rows[start : start + pe] for start in range(0, channels, pe)]
    return Array(circuit.kind, "requantize_with", (channels // pe, pe), folds, word=(2,), packed=True)


def _one(circuit: _Circuit) -> Array:
    return Array(circuit.kind, "requantize_with", (), circuit.constants[0])


def _bias_of(layer: MatrixVector | Depthwise, pe: int) -> Array:
    values = layer.bias.reshape(-1, pe)
    return Array(f"ap_int<{_bias(layer.bias)}>", "bias", values.shape, values.tolist(), word=(2,))


def _beats(name: str, wire: Wire, *sizes: int, banks: tuple[int, ...] = (), apart: bool = False) -> Array:
    """A memory of beats."""
    return Array(f"beat<{wire.stream.bits}, {wire.lanes}>", name, sizes, banks=banks, packed=True, apart=apart)


# -- layers ----------------------------------------------------------------------------------------------------------


def _matrix_vector(process: Process, layer: MatrixVector) -> Code:
    pe, simd, x = process.fold.pe, process.fold.simd, process.reads[0]
    rows, columns = layer.weight.shape
    own, bits = circuit(process, layer), weight_bits(layer.weight)
    tiles = layer.weight.reshape(rows // pe, pe, columns // simd, simd).transpose(0, 2, 1, 3)
    shape: dict[str, object] = {
        "PIXELS": layer.pixels, "ROWS": rows, "COLUMNS": columns, "PE": pe, "SIMD": simd, "IN": layer.x.bits,
        "WEIGHT": bits, "FABRIC": int(in_fabric(process.fold, layer.x.bits, bits)), **own.shape,
    }  # fmt: skip
    finish = _bias_of(layer, pe), _channels(own, rows, pe)
    if process.steps is not None:
        return _sparse(process, layer, tiles, shape, own, finish)
    flat = tiles.reshape(-1, pe, simd)
    weights = _weights(bits, flat)
    if is_unrolled(process):
        return Code("mvau_unrolled", "mvau.h", shape, (weights, *finish), own.struct)
    vector = _beats("vector", x, columns // simd)
    if not process.fold.streamed:
        return Code("mvau", "mvau.h", shape, (weights, *finish, vector), own.struct)
    tile = f"weight_tile<{bits}, {pe}, {simd}>"
    steps = Array(tile, "weights", (len(flat),), [[step] for step in flat.tolist()], outside=True)
    return Code("mvau", "mvau.h", shape, (steps, *finish, vector), own.struct, tile)


def _weights(bits: int, tiles: Ints) -> Array:
    """int64[steps, pe, simd] as a memory of a word a step."""
    return Array(f"ap_int<{bits}>", "weights", tiles.shape, tiles.tolist(), word=(2, 3))


def _sparse(
    process: Process,
    layer: MatrixVector,
    tiles: Ints,
    shape: dict[str, object],
    own: _Circuit,
    finish: tuple[Array, ...],
) -> Code:
    """A unit with a static schedule."""
    pe, x, folds = process.fold.pe, process.reads[0], tiles.shape[1]
    assert process.steps is not None
    packed, schedule = _packed(tiles, process.steps)
    shape |= {"STEPS": len(schedule), "COLUMN": max(1, (folds - 1).bit_length())}
    kind = f"sparse_step<{pe}, {shape['COLUMN']}>"
    arrays = (
        _weights(weight_bits(layer.weight), packed),
        Array(kind, "schedule", (len(schedule),), schedule, packed=True),
        *finish,
        _beats("vectors", x, pe, 2, folds, banks=(1,)),
    )
    return Code("mvau_sparse", "mvau.h", shape, arrays, own.struct)


def _bias(values: Ints) -> int:
    return signed_bits(int(values.min()), int(values.max()))


def _packed(tiles: Ints, steps: list[list[list[int]]]) -> tuple[Ints, list[Any]]:
    """The tiles of a static schedule, and the schedule: for each step the blocks, and whether it is the fold's last."""
    packed, schedule = [], []
    for fold, plan in zip(tiles, steps, strict=True):
        for index, blocks in enumerate(plan):
            packed.append([fold[max(block, 0), p] * (block >= 0) for p, block in enumerate(blocks)])
            schedule.append([[max(block, 0) for block in blocks], int(index == len(plan) - 1)])
    return np.array(packed), schedule


def _depthwise(process: Process, layer: Depthwise) -> Code:
    pe, simd, (channels, taps) = process.fold.pe, process.fold.simd, layer.weight.shape
    own, bits = circuit(process, layer), weight_bits(layer.weight)
    tiles = layer.weight.reshape(channels // pe, pe, taps // simd, simd).transpose(0, 2, 1, 3).reshape(-1, pe, simd)
    fabric = is_unrolled(process) or in_fabric(process.fold, layer.x.bits, bits)
    shape = {
        "PIXELS": layer.y.pixels, "CHANNELS": channels, "TAPS": taps, "PE": pe, "SIMD": simd, "IN": layer.x.bits,
        "WEIGHT": bits, "FABRIC": int(fabric), **own.shape,
    }  # fmt: skip
    arrays = _weights(bits, tiles), _bias_of(layer, pe), _channels(own, channels, pe)
    return Code("depthwise", "depthwise.h", shape, arrays, own.struct)


def _window(process: Process, layer: Window) -> Code:
    g, x = layer.geometry, process.reads[0]
    shape: dict[str, object] = {
        **_plane(process, g), "CHANNELS": layer.x.channels, "KERNEL_Y": g.kernel[0], "KERNEL_X": g.kernel[1],
        "PAD_TOP": g.padding[0], "PAD_LEFT": g.padding[1], "DILATION_Y": g.dilation[0], "DILATION_X": g.dilation[1],
        "PAD": layer.pad,
    }  # fmt: skip
    if is_parallel(process):
        shape |= {"PADDED_ROWS": g.padded[0], "PADDED_WIDTH": g.padded[1]}
        folds = layer.x.channels // x.lanes
        above = _beats("lines", x, max(g.span[0] - 1, 1), g.padded[1] * folds, banks=(1,), apart=True)
        pixels = _beats("pixels", x, *g.span, folds, banks=(1, 2), apart=True)
        return Code("window_parallel", "window.h", shape, (above, pixels))
    ring = _beats("ring", x, g.lines, g.plane[1] * (layer.x.channels // x.lanes))
    return Code("window", "window.h", {"BY_CHANNEL": int(layer.by_channel), **shape, "LINES": g.lines}, (ring,))


def _plane(process: Process, g: Geometry) -> dict[str, object]:
    x = process.reads[0]
    return {
        "ROWS": g.plane[0], "WIDTH": g.plane[1], "LANES": x.lanes, "BITS": x.stream.bits, "OUT_ROWS": g.out[0],
        "OUT_WIDTH": g.out[1], "STRIDE_Y": g.stride[0], "STRIDE_X": g.stride[1],
    }  # fmt: skip


def _select(process: Process, layer: Select) -> Code:
    x, masks = process.reads[0], layer.masks
    folds = masks.channels[:: x.lanes].tolist()
    shape = {
        "ROWS": len(masks.rows), "WIDTH": len(masks.columns), "FOLDS": len(folds), "LANES": x.lanes,
        "BITS": x.stream.bits,
    }  # fmt: skip
    kept = {"rows": masks.rows.tolist(), "columns": masks.columns.tolist(), "folds": folds}
    arrays = tuple(Array("bool", name, (len(mask),), mask, banks=(1,)) for name, mask in kept.items())
    return Code("select", "order.h", shape, arrays)


def _reorder(process: Process, layer: Reorder) -> Code:
    x, plan = process.reads[0], ring(process, layer)
    shape: dict[str, object] = {
        "TAKEN": plan.taken, "SENT": len(plan.sequence), "TURNS": plan.turns, "STEP": plan.step, "LEAD": plan.lead,
        "RING": plan.size, "LANES": x.lanes, "BITS": x.stream.bits,
    }  # fmt: skip
    ring_of_beats, nest = _beats("ring", x, plan.size), loops(plan.sequence)
    if nest is None:
        slots = (plan.sequence % plan.size).tolist()
        kind = f"ap_uint<{max(1, (plan.size - 1).bit_length())}>"
        return Code("reorder_by_table", "order.h", shape, (Array(kind, "slots", (len(slots),), slots), ring_of_beats))
    nest = nest or [(1, 0)]
    shape |= {"LOOPS": len(nest), "START": int(plan.sequence[0]) % plan.size}
    listed = Array("reorder_loop", "loops", (len(nest),), [list(row) for row in nest], banks=(1,))
    return Code("reorder", "order.h", shape, (listed, ring_of_beats))


def _folded(process: Process) -> dict[str, object]:
    pe = process.fold.pe
    return {"FOLDS": process.writes[0].stream.channels // pe, "PE": pe}


def _max_pool(process: Process, layer: MaxPool) -> Code:
    shape = {
        "PIXELS": layer.y.pixels, **_folded(process), "TAPS": layer.taps, "SIMD": process.fold.simd,
        "BITS": layer.y.bits,
    }  # fmt: skip
    return Code("max_pool", "pool.h", shape)


def _sum_pool(process: Process, layer: SumPool) -> Code:
    own = circuit(process, layer)
    shape = {
        "PIXELS": layer.y.pixels, **_folded(process), "TAPS": layer.taps, "SIMD": process.fold.simd, "IN": layer.x.bits,
        "START": layer.bias, **own.shape,
    }  # fmt: skip
    return Code("sum_pool", "pool.h", shape, (_one(own),), own.struct)


def _global_pool(process: Process, layer: GlobalPool) -> Code:
    own = circuit(process, layer)
    pixels = layer.x.count // layer.y.channels
    shape = {"PIXELS": pixels, **_folded(process), "IN": layer.x.bits, "START": layer.bias, **own.shape}
    folds, pe = layer.y.channels // process.fold.pe, process.fold.pe
    sums = Array(f"ap_int<{acc_bits(layer.acc)}>", "sums", (folds, pe), word=(2,), apart=True)
    return Code("global_pool", "global_pool.h", shape, (_one(own), sums), own.struct)


def _two(process: Process) -> dict[str, object]:
    left, right = (wire.stream.bits for wire in process.reads)
    out = process.writes[0]
    return {"COUNT": out.beats, "PE": process.fold.pe, "A": left, "B": right, "OUT": out.stream.bits}


def _add(process: Process, layer: Add) -> Code:
    left, right = layer.reads
    pair, y = layer.pair, layer.y
    if pair.table is not None:
        table = (pair.table.values - y.low).tolist()
        pe = process.fold.pe
        entries = Array(f"ap_uint<{y.bits}>", "table", (len(table), len(table[0])), table, readers=pe)
        return Code("pair_table", "elementwise.h", _two(process), (entries,))
    a, b = pair.multiplier_a, pair.multiplier_b
    offset = pair.offset + left.low * a + right.low * b
    reach = [i * a + j * b + offset for i in (0, left.high - left.low) for j in (0, right.high - right.low)]
    listed = [(0, 0, 0), *((i - left.low, j - right.low, q - y.low) for i, j, q in pair.exceptions)]
    shape = {
        **_two(process), "TOTAL": max(signed_bits(min(reach), max(reach)) + 1, _LEAST_TOTAL), "MULTIPLIER_A": a,
        "MULTIPLIER_B": b, "OFFSET": offset, "SHIFT": pair.shift, "EVEN": int(pair.even), "ZERO": pair.zero_point,
        "LEAST": pair.quant_min, "MOST": pair.quant_max, "BASE": y.low, "EXCEPTIONS": len(listed),
    }  # fmt: skip
    return Code(
        "add", "elementwise.h", shape, (Array("pair_exception", "exceptions", (len(listed),), listed, banks=(1,)),)
    )


def _multiply(process: Process, layer: Multiply) -> Code:
    own = circuit(process, layer)
    ends = [move + more for x, move in zip(layer.reads, layer.moves, strict=True) for more in (0, x.high - x.low)]
    centred = signed_bits(min(ends), max(ends))
    shape = {**_two(process), "FROM_A": layer.moves[0], "FROM_B": layer.moves[1], "CENTRED": centred, **own.shape}
    return Code("multiply", "elementwise.h", shape, (_one(own),), own.struct)


def _lookup(process: Process, layer: Lookup) -> Code:
    shape = {"COUNT": process.writes[0].beats, "PE": process.fold.pe, "IN": layer.x.bits, "OUT": layer.y.bits}
    table = Array(
        f"ap_uint<{layer.y.bits}>", "table", (len(layer.table),), layer.table.tolist(), readers=process.fold.pe
    )
    return Code("lookup", "elementwise.h", shape, (table,))


def _constant(process: Process, layer: Constant) -> Code:
    y = process.writes[0]
    rows = layer.values.reshape(-1, y.lanes).tolist()
    values = Array(f"ap_uint<{y.stream.bits}>", "values", (len(rows), y.lanes), rows, word=(2,))
    return Code("constant", "streams.h", {"COUNT": y.beats, "LANES": y.lanes, "BITS": y.stream.bits}, (values,))


def _concat(process: Process, layer: Concat) -> Code:
    (left, right), y = layer.reads, layer.y
    pe = process.fold.pe
    shape = {
        "ROUNDS": layer.rounds, "LEFT_FOLDS": left.count // layer.rounds // pe,
        "RIGHT_FOLDS": right.count // layer.rounds // pe,
        "PE": pe, "LEFT": left.bits, "RIGHT": right.bits, "OUT": y.bits, "MOVE_LEFT": left.low - y.low,
        "MOVE_RIGHT": right.low - y.low,
    }  # fmt: skip
    return Code("concat", "streams.h", shape)


def _fork(process: Process, layer: Fork) -> Code:
    x = process.reads[0]
    return Code("fork", "streams.h", {"COUNT": x.beats, "LANES": x.lanes, "BITS": x.stream.bits})


def _convert(process: Process) -> Code:
    x, y = process.reads[0], process.writes[0]
    shape = {"COUNT": x.stream.count, "FROM": x.lanes, "TO": y.lanes, "BITS": x.stream.bits}
    return Code("convert", "streams.h", shape)


_WRITERS: dict[type, Callable[[Process, Any], Code]] = {
    MatrixVector: _matrix_vector,
    Depthwise: _depthwise,
    Window: _window,
    Select: _select,
    Reorder: _reorder,
    MaxPool: _max_pool,
    SumPool: _sum_pool,
    GlobalPool: _global_pool,
    Add: _add,
    Multiply: _multiply,
    Lookup: _lookup,
    Concat: _concat,
    Constant: _constant,
    Fork: _fork,
}
