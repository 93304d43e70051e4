"""The C++ of a design: for each layer its constants, and the call of its kernel with named parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .design import Process, Wire, in_fabric
from .graph import (
    Add,
    Concat,
    Depthwise,
    Fork,
    Geometry,
    GlobalPool,
    Lookup,
    MatrixVector,
    MaxPool,
    Multiply,
    Subsample,
    SumPool,
    Window,
    acc_bits,
    weight_bits,
)
from .requantizer import Form, Ints, Requantizer, signed_bits

_WIDTH = 116
_LEAST_TOTAL = 11
"""Holds what 8 bits and a zero point of 8 bits can differ by."""


@dataclass(frozen=True)
class Code:
    """The C++ of one process.

    kernel: the function, of the file `header`. shape: its parameters by name. arguments: what follows the streams,
    names of `constants`. requantize: the struct that finishes sums. memory: the type of what is read from outside the
    chip.
    """

    kernel: str
    header: str
    shape: Mapping[str, object]
    constants: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    requantize: str | None = None
    memory: str | None = None


def code(process: Process) -> Code:
    """The C++ of one process."""
    if process.layer is None:
        return _convert(process)
    return _WRITERS[type(process.layer)](process, process.layer)


# -- text ------------------------------------------------------------------------------------------------------------


def braces(values: Any) -> str:
    """Nested lists of numbers as a C++ initializer."""
    if isinstance(values, list | tuple):
        return "{" + ", ".join(map(braces, values)) + "}"
    return str(int(values))


def wrapped(text: str, indent: str = "    ") -> list[str]:
    """Lines of at most `_WIDTH` characters, broken after commas."""
    lines, line = [], ""
    for part in text.split(", "):
        piece = part + ", "
        if line and len(line) + len(piece) > _WIDTH:
            lines.append(indent + line.rstrip())
            line = ""
        line += piece
    return [*lines, indent + line.removesuffix(", ")]


def array(kind: str, name: str, sizes: Sequence[int], values: Any) -> tuple[str, ...]:
    """A constant array."""
    shape = "".join(f"[{size}]" for size in sizes)
    lines = wrapped(f"{braces(values)};")
    return (f"static const {kind} {name}{shape} =", *lines)


# -- requantization --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Circuit:
    """A requantizer in C++: the struct, its parameters, the type of a channel's constants, and their values."""

    struct: str
    shape: dict[str, object]
    kind: str
    constants: list[Any]


def circuit(requantizer: Requantizer | None, acc: tuple[int, int], y: Wire) -> _Circuit:
    """The requantizer of a layer; without one the accumulator itself."""
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
    shape |= {"MOST": plain.quant_max, "ZERO": plain.zero_point, "TOTAL": total_bits(plain, acc)}
    columns = plain.multiplier, plain.offset, plain.shift, plain.even, plain.form == Form.FLOAT
    rows = [list(map(int, row)) for row in zip(*columns, strict=True)]
    kind = f"multiply_constants<{max(plain.multiplier_bits, 1)}, {offset_bits(plain)}>"
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


def _channels(circuit: _Circuit, name: str, channels: int, pe: int) -> tuple[str, ...]:
    """Constants of every channel, arranged as folds of `pe`; one is repeated where all share it."""
    rows = circuit.constants
    if not rows:
        folds: list[Any] = [[[] for _ in range(pe)] for _ in range(channels // pe)]
    else:
        rows = rows * channels if len(rows) == 1 else rows
        folds = [rows[start : start + pe] for start in range(0, channels, pe)]
    return array(circuit.kind, name, (channels // pe, pe), folds)


def _one(circuit: _Circuit, name: str) -> tuple[str, ...]:
    return (f"static const {circuit.kind} {name} = {braces(circuit.constants[0])};",)


# -- layers ----------------------------------------------------------------------------------------------------------


def _matrix_vector(process: Process, layer: MatrixVector) -> Code:
    pe, simd = process.fold.pe, process.fold.simd
    rows, columns = layer.weight.shape
    own, bits, bias = (
        circuit(layer.requantizer, layer.acc, process.writes[0]),
        weight_bits(layer.weight),
        _bias(layer.bias),
    )
    tile = f"weight_tile<{bits}, {pe}, {simd}>"
    tiles = layer.weight.reshape(rows // pe, pe, columns // simd, simd).transpose(0, 2, 1, 3)
    shape: dict[str, object] = {
        "PIXELS": layer.pixels, "ROWS": rows, "COLUMNS": columns, "PE": pe, "SIMD": simd, "IN": layer.x.bits,
        "WEIGHT": bits, "BIAS": bias, "FABRIC": int(in_fabric(process.fold, layer.x.bits, bits)), **own.shape,
    }  # fmt: skip
    constants = (
        *array(f"ap_int<{bias}>", "bias", (rows // pe, pe), layer.bias.reshape(-1, pe).tolist()),
        *_channels(own, "requantize", rows, pe),
    )
    steps = process.steps
    if steps is None:
        flat = [[step] for step in tiles.reshape(-1, pe, simd).tolist()]
        weights = array(tile, "weights", (len(flat),), flat)
        memory = tile if process.fold.streamed else None
        arguments = "weights", "bias", "requantize"
        return Code("mvau", "mvau.h", shape, (*weights, *constants), arguments, own.struct, memory)
    packed, schedule = _packed(tiles, steps)
    shape |= {"STEPS": len(schedule), "COLUMN": max(1, (columns // simd - 1).bit_length())}
    listed = [
        *array(tile, "weights", (len(packed),), [[step] for step in packed]),
        *array(f"sparse_step<{pe}, {shape['COLUMN']}>", "schedule", (len(schedule),), schedule),
    ]
    names = "weights", "schedule", "bias", "requantize"
    return Code("mvau_sparse", "mvau.h", shape, (*listed, *constants), names, own.struct)


def _bias(values: Ints) -> int:
    return signed_bits(int(values.min()), int(values.max()))


def _packed(tiles: Ints, steps: list[list[list[int]]]) -> tuple[list[Any], list[Any]]:
    """The tiles of a static schedule, and the schedule: for each step the blocks, and whether it is the fold's last."""
    packed, schedule = [], []
    for fold, plan in zip(tiles, steps, strict=True):
        for index, blocks in enumerate(plan):
            rows = [fold[max(block, 0), p] * (block >= 0) for p, block in enumerate(blocks)]
            packed.append([row.tolist() for row in rows])
            schedule.append([[max(block, 0) for block in blocks], int(index == len(plan) - 1)])
    return packed, schedule


def _depthwise(process: Process, layer: Depthwise) -> Code:
    pe, (channels, taps) = process.fold.pe, layer.weight.shape
    own, bits, bias = (
        circuit(layer.requantizer, layer.acc, process.writes[0]),
        weight_bits(layer.weight),
        _bias(layer.bias),
    )
    tiles = layer.weight.reshape(channels // pe, pe, taps).transpose(0, 2, 1).reshape(-1, pe, 1)
    constants = (
        *array(f"weight_tile<{bits}, {pe}, 1>", "weights", (len(tiles),), [[step] for step in tiles.tolist()]),
        *array(f"ap_int<{bias}>", "bias", (channels // pe, pe), layer.bias.reshape(-1, pe).tolist()),
        *_channels(own, "requantize", channels, pe),
    )
    shape = {
        "PIXELS": layer.y.pixels, "CHANNELS": channels, "TAPS": taps, "PE": pe, "IN": layer.x.bits, "WEIGHT": bits,
        "BIAS": bias, **own.shape,
    }  # fmt: skip
    return Code("depthwise", "depthwise.h", shape, constants, ("weights", "bias", "requantize"), own.struct)


def _window(process: Process, layer: Window) -> Code:
    g = layer.geometry
    shape = {
        "BY_CHANNEL": int(layer.by_channel), **_plane(process, g), "CHANNELS": layer.x.channels,
        "KERNEL_Y": g.kernel[0], "KERNEL_X": g.kernel[1], "PAD_TOP": g.padding[0], "PAD_LEFT": g.padding[1],
        "DILATION_Y": g.dilation[0], "DILATION_X": g.dilation[1], "LINES": g.lines, "PAD": layer.pad,
    }  # fmt: skip
    return Code("window", "window.h", shape)


def _plane(process: Process, g: Geometry) -> dict[str, object]:
    x = process.reads[0]
    return {
        "ROWS": g.plane[0], "WIDTH": g.plane[1], "LANES": x.lanes, "BITS": x.stream.bits, "OUT_ROWS": g.out[0],
        "OUT_WIDTH": g.out[1], "STRIDE_Y": g.stride[0], "STRIDE_X": g.stride[1],
    }  # fmt: skip


def _subsample(process: Process, layer: Subsample) -> Code:
    folds = layer.x.channels // process.reads[0].lanes
    return Code("subsample", "window.h", {**_plane(process, layer.geometry), "FOLDS": folds})


def _folded(process: Process) -> dict[str, object]:
    pe = process.fold.pe
    return {"FOLDS": process.writes[0].stream.channels // pe, "PE": pe}


def _max_pool(process: Process, layer: MaxPool) -> Code:
    shape = {"PIXELS": layer.y.pixels, **_folded(process), "TAPS": layer.taps, "BITS": layer.y.bits}
    return Code("max_pool", "pool.h", shape)


def _sum_pool(process: Process, layer: SumPool) -> Code:
    own = circuit(layer.requantizer, layer.acc, process.writes[0])
    shape = {
        "PIXELS": layer.y.pixels, **_folded(process), "TAPS": layer.taps, "IN": layer.x.bits, "START": layer.bias,
        **own.shape,
    }  # fmt: skip
    return Code("sum_pool", "pool.h", shape, _one(own, "requantize"), ("requantize",), own.struct)


def _global_pool(process: Process, layer: GlobalPool) -> Code:
    own = circuit(layer.requantizer, layer.acc, process.writes[0])
    pixels = layer.x.count // layer.y.channels
    shape = {"PIXELS": pixels, **_folded(process), "IN": layer.x.bits, "START": layer.bias, **own.shape}
    return Code("global_pool", "global_pool.h", shape, _one(own, "requantize"), ("requantize",), own.struct)


def _two(process: Process) -> dict[str, object]:
    left, right = (wire.stream.bits for wire in process.reads)
    out = process.writes[0]
    return {"COUNT": out.beats, "PE": process.fold.pe, "A": left, "B": right, "OUT": out.stream.bits}


def _add(process: Process, layer: Add) -> Code:
    left, right = layer.reads
    pair, y = layer.pair, layer.y
    if pair.table is not None:
        table = (pair.table.values - y.low).tolist()
        constants = array(f"ap_uint<{y.bits}>", "table", (len(table), len(table[0])), table)
        return Code("pair_table", "elementwise.h", _two(process), constants, ("table",))
    a, b = pair.multiplier_a, pair.multiplier_b
    offset = pair.offset + left.low * a + right.low * b
    reach = [i * a + j * b + offset for i in (0, left.high - left.low) for j in (0, right.high - right.low)]
    listed = [(0, 0, 0), *((i - left.low, j - right.low, q - y.low) for i, j, q in pair.exceptions)]
    shape = {
        **_two(process), "TOTAL": max(signed_bits(min(reach), max(reach)) + 1, _LEAST_TOTAL), "MULTIPLIER_A": a,
        "MULTIPLIER_B": b, "OFFSET": offset, "SHIFT": pair.shift, "EVEN": int(pair.even), "ZERO": pair.zero_point,
        "LEAST": pair.quant_min, "MOST": pair.quant_max, "BASE": y.low, "EXCEPTIONS": len(listed),
    }  # fmt: skip
    constants = array("pair_exception", "exceptions", (len(listed),), listed)
    return Code("add", "elementwise.h", shape, constants, ("exceptions",))


def _multiply(process: Process, layer: Multiply) -> Code:
    own = circuit(layer.requantizer, layer.acc, process.writes[0])
    shape = {**_two(process), "FROM_A": layer.moves[0], "FROM_B": layer.moves[1], **own.shape}
    return Code("multiply", "elementwise.h", shape, _one(own, "requantize"), ("requantize",), own.struct)


def _lookup(process: Process, layer: Lookup) -> Code:
    shape = {"COUNT": process.writes[0].beats, "PE": process.fold.pe, "IN": layer.x.bits, "OUT": layer.y.bits}
    constants = array(f"ap_uint<{layer.y.bits}>", "table", (len(layer.table),), layer.table.tolist())
    return Code("lookup", "elementwise.h", shape, constants, ("table",))


def _concat(process: Process, layer: Concat) -> Code:
    (left, right), y = layer.reads, layer.y
    pe = process.fold.pe
    shape = {
        "PIXELS": y.pixels, "LEFT_FOLDS": left.count // y.pixels // pe, "RIGHT_FOLDS": right.count // y.pixels // pe,
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
    Subsample: _subsample,
    MaxPool: _max_pool,
    SumPool: _sum_pool,
    GlobalPool: _global_pool,
    Add: _add,
    Multiply: _multiply,
    Lookup: _lookup,
    Concat: _concat,
    Fork: _fork,
}
