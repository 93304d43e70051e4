"""C for each step. One short function of the file for each kind; a table says which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.ir.integer_norms import root_bits

from .blob import Blob
from .fixed_sums import fixed_sum
from .layout import Affine
from .memory import Arena
from .nests import Nest
from .pack import DENSE, GROUP, MAGIC_BITS, SPARSE, fold_bias, pack_dense, pack_depthwise, pack_sparse, pad_channels
from .steps import (
    Convolution,
    Copy,
    CutAverage,
    DequantizeOutput,
    Fill,
    FromBlocks,
    Gather,
    LinearOutput,
    Lookup,
    MatMul,
    Normalize,
    Phases,
    Place,
    Pool,
    Product,
    QuantizeInput,
    Requantize,
    Softmax,
    Step,
    Sum,
    ToBlocks,
    Walk,
)
from .views import Run


@dataclass(frozen=True)
class Context:
    """What steps are written with: the instruction set, its blocks, the constants so far, and where buffers lie."""

    isa: str
    block: int
    blob: Blob
    arena: Arena

    def at(self, walk: Walk, *, inside: bool = True) -> str:
        """The address of a buffer's first value; of its first byte where not `inside`."""
        first = walk.affine.first if inside else 0
        if walk.buffer.data is not None:
            stored = np.zeros(walk.buffer.layout.size, np.int8)
            stored[walk.buffer.offsets.reshape(-1)] = walk.buffer.data.reshape(-1)
            return f"weights + {self.blob.add(stored) + first}"
        return f"arena + {self.arena.offset(walk.buffer) + first}"

    def constant(self, values: np.ndarray[Any, Any]) -> str:
        """The address of a constant, with its type."""
        kind = {"int8": "int8_t", "int32": "int32_t", "float32": "float"}[values.dtype.name]
        return f"(const {kind} *)(const void *)(weights + {self.blob.add(values)})"

    def requantize(self, grid: Requantize, multiplier: np.ndarray[Any, Any] | None = None) -> str:
        """The initializer of a tersor_requantize."""
        scale = self.constant(grid.multiplier if multiplier is None else multiplier)
        return f"{{{scale}, {grid.zero_point}, {grid.quant_min}, {grid.quant_max}, {int(grid.magic)}}}"


def number(value: float) -> str:
    """A float32 in C that reads back as the same."""
    return f"{float(np.float32(value)).hex()}f"


def _struct(kind: str, name: str, fields: dict[str, Any]) -> str:
    listed = "".join(f"\n        .{key} = {value}," for key, value in fields.items())
    return f"    const {kind} {name} = {{{listed}\n    }};"


def _written(step: Step) -> Walk:
    assert step.writes is not None
    return step.writes


def _planes(y: Walk, reads: Sequence[Walk] = (), size: tuple[int, int, int] | None = None) -> str:
    """The initializer of a tersor_planes: blocks, rows, bytes of a row, and the strides of up to three tensors."""
    layout = y.buffer.layout
    blocks, rows, count = size or (layout.blocks, layout.rows, layout.width * layout.block)
    walks = [*reads[:2], *[y] * (2 - len(reads[:2])), y]
    strides = ", ".join(f"{walk.affine.block_bytes}, {walk.affine.row_bytes}" for walk in walks)
    return f"{{{blocks}, {rows}, {count}, {strides}}}"


def _grid(scale: float, zero_point: int) -> str:
    return f"(tersor_grid){{{number(scale)}, {zero_point}}}"


def _rows(count: int) -> str:
    return f"    const tersor_span rows = tersor_share_of({count}, share);"


def _fill(c: Context, s: Fill) -> list[str]:
    walk = _written(s)
    layout, border = walk.buffer.layout, walk.buffer.layout.border
    start = c.at(walk, inside=False)
    if not s.border_only:
        return [_once(f"tersor_fill({start}, {layout.blocks * layout.block_bytes}, {s.value});")]
    planes = f"    const tersor_planes planes = {_planes(walk)};"
    sides = f"(tersor_border){{{border.top}, {border.bottom}, {border.left}, {border.right}}}"
    return [planes, _once(f"tersor_fill_border(&planes, {sides}, {layout.block}, {s.value}, {start});")]


def _quantize(c: Context, s: QuantizeInput) -> list[str]:
    walk = _written(s)
    call = f"(const float *)inputs[{s.index}] + span.begin, {c.at(walk)} + span.begin, span.end - span.begin"
    return [
        f"    const tersor_span span = tersor_share_of({walk.buffer.count}, share);",
        f"    LAYER(tersor_quantize)({call}, {_grid(s.scale, s.zero_point)}, {s.quant_min}, {s.quant_max});",
    ]


def _dequantize(c: Context, s: DequantizeOutput) -> list[str]:
    call = f"{c.at(s.reads[0])} + span.begin, (float *)outputs[{s.index}] + span.begin, span.end - span.begin"
    return [
        f"    const tersor_span span = tersor_share_of({s.count}, share);",
        f"    LAYER(tersor_dequantize)({call}, {_grid(s.scale, s.zero_point)});",
    ]


def indices(c: Context, s: Gather) -> str:
    """The initializer of a tersor_indices: no positions where the numbers are all of the input, in order."""
    in_order = np.array_equal(s.positions, np.arange(s.positions.size))
    positions = "NULL" if in_order else c.constant(s.positions)
    return f"{{{s.positions.size}, {s.bytes}, {positions}}}"


def _gather(c: Context, s: Gather) -> list[str]:
    numbers = f"    const tersor_indices indices = {indices(c, s)};"
    table = c.constant(s.table), s.table.shape[1]
    call = f"&indices, inputs[{s.index}], {table[0]}, {table[1]}, {c.at(_written(s))}, share"
    return [numbers, f"    tersor_layer_gather({call});"]


def _to_blocks(c: Context, s: ToBlocks) -> list[str]:
    x, y = s.reads[0], _written(s)
    layout = y.buffer.layout
    plain = Walk(x.buffer, Affine(x.affine.first, layout.rows * layout.width, layout.width))
    planes = _planes(y, (plain,), (layout.blocks, layout.rows, layout.width))
    call = f"    tersor_to_blocks(&planes, {c.block}, {layout.channels}, 0, {c.at(x)}, {c.at(y)}, share);"
    return [f"    const tersor_planes planes = {planes};", call]


def _from_blocks(c: Context, s: FromBlocks) -> list[str]:
    x, y = s.reads[0], _written(s)
    plain = Walk(y.buffer, Affine(y.affine.first, s.rows * s.width, s.width))
    planes = _planes(plain, (x,), (-(-s.channels // c.block), s.rows, s.width))
    call = f"    tersor_from_blocks(&planes, {c.block}, {s.channels}, {c.at(x)}, {c.at(y)}, share);"
    return [f"    const tersor_planes planes = {planes};", call]


def _once(call: str) -> str:
    return f"    if (share.part == 0)\n        {call}"


def _copy(c: Context, s: Copy) -> list[str]:
    lines: list[str] = []
    target = c.at(_written(s), inside=False)
    for walk, part in zip(s.reads, s.parts, strict=True):
        source = c.at(walk, inside=False)
        lines += [_nest(c, piece, source, target) for piece in part if isinstance(piece, Nest)]
        table = np.array([(p.target, p.source, p.length) for p in part if isinstance(p, Run)], np.int32)
        if table.size:
            lines.append(f"    tersor_copy_runs({c.constant(table)}, {len(table)}, {source}, {target}, share);")
    return lines


def _nest(c: Context, nest: Nest, source: str, target: str) -> str:
    loops = np.array([(loop.count, loop.source, loop.target) for loop in nest.loops] or [(1, 0, 0)], np.int32)
    table = f"(const tersor_loop *)(const void *)(weights + {c.blob.add(loops)})"
    call = f"{table}, {len(loops)}, {nest.length}, {source} + {nest.source}, {target} + {nest.target}, share"
    return f"    tersor_copy_loops({call});"


def _phases(c: Context, s: Phases) -> list[str]:
    walk = s.reads[0]
    wanted = np.array(s.wanted, np.int32)
    fields = {
        "blocks": s.blocks, "block": c.block, "rows": s.plane[0], "width": s.plane[1],
        "x_block": walk.affine.block_bytes, "x_row": walk.affine.row_bytes,
        "stride_y": s.stride[0], "stride_x": s.stride[1], "wanted": c.constant(wanted), "count": len(wanted),
    }  # fmt: skip
    call = f"    tersor_split_phases(&phases, {c.at(walk)}, {c.at(_written(s))}, share);"
    return [_struct("tersor_phases", "phases", fields), call]


def _weights(c: Context, s: Convolution, block: int, x_block: int) -> dict[str, Any]:
    """The weights of a convolution, packed for its kernel, with what tells where they are where they are sparse."""
    kernel, vector = s.kernel.removesuffix("_vector"), s.kernel.endswith("_vector")
    if kernel == "depthwise":
        return {"weights": c.constant(pack_depthwise(s.weight, block))}
    if kernel == "dense":
        layout = DENSE["dense_dotprod" if vector and c.isa == "i8mm" else f"dense_{c.isa}"]
        return {"weights": c.constant(pack_dense(s.weight, layout))}
    sparse = pack_sparse(s.weight, SPARSE[kernel], s.taps, x_block)
    return {
        "weights": c.constant(sparse.stream),
        "group_starts": c.constant(sparse.group_starts),
        "block_counts": c.constant(sparse.block_counts),
    }


def _convolution(c: Context, s: Convolution) -> list[str]:
    x, y, weight = s.reads[0], _written(s), s.weight
    assert s.requantize is not None
    vector = s.kernel.endswith("_vector")
    block = 4 if vector else c.block
    x_block, y_block = (block, block) if vector else (x.affine.block_bytes, y.affine.block_bytes)
    bias = fold_bias(s.bias, weight, s.input_zero_point, magic=s.requantize.magic)
    scale = pad_channels(s.requantize.multiplier)
    fields = {
        "channels": len(weight),
        "rows": s.rows,
        "width": s.width,
        "blocks": -(-weight.shape[1] // block),
        "taps": len(s.taps),
        "x_block": x_block,
        "x_row": x.affine.row_bytes,
        "y_block": y_block,
        "y_row": y.affine.row_bytes,
        "tap_offsets": c.constant(s.taps),
        **_weights(c, s, block, x_block),
        "bias": c.constant(bias),
        "requantize": c.requantize(s.requantize, scale),
    }
    lines = [f"    /* {s.reason} */"]
    if s.residual is not None:
        fields["residual"] = "&residual"
        lines.append(_struct("tersor_residual", "residual", _residual(c, s.residual, s.reads[1])))
    part = f"tersor_part_of({s.rows * s.width}, {-(-len(weight) // GROUP)}, share)"
    call = f"    KERNEL({s.kernel})(&conv, {c.at(x)}, {c.at(y)}, {part});"
    return [*lines, _struct("tersor_conv", "conv", fields), call]


def _residual(c: Context, s: Sum, other: Walk) -> dict[str, Any]:
    numbers = ", ".join(f".{key} = {value}" for key, value in _sum_fields(s).items())
    return {
        "sum": f"{{{numbers}}}",
        "b": c.at(other),
        "b_block": other.affine.block_bytes,
        "b_row": other.affine.row_bytes,
    }


def _binary(c: Context, s: Sum | Product, name: str, fields: dict[str, Any]) -> list[str]:
    y = _written(s)
    layout = y.buffer.layout
    fields = {"planes": _planes(y, s.reads), **fields}
    a, b = (c.at(walk) for walk in s.reads)
    call = f"    LAYER({name})(&binary, {a}, {b}, {c.at(y)}, rows.begin, rows.end);"
    return [_struct("tersor_binary", "binary", fields), _rows(layout.blocks * layout.rows), call]


def _sum(c: Context, s: Sum) -> list[str]:
    return _binary(c, s, "tersor_add", _sum_fields(s))


def _sum_fields(s: Sum) -> dict[str, Any]:
    """The numbers of a tersor_binary."""
    grids = zip("aby", s.scales, s.zero_points, strict=True)
    fields: dict[str, Any] = {name: f"{{{number(scale)}, {zero_point}}}" for name, scale, zero_point in grids}
    fields |= {"min": str(s.quant_min), "max": str(s.quant_max)}
    if (fixed := fixed_sum(s)) is not None:
        fields |= {"a_factor": str(fixed.a_factor), "b_factor": str(fixed.b_factor), "shift": str(fixed.shift)}
    return fields


def _product(c: Context, s: Product) -> list[str]:
    assert s.requantize is not None
    grid, (za, zb) = s.requantize, s.zero_points
    fields = {
        "a": f"{{1.0f, {za}}}", "b": f"{{1.0f, {zb}}}", "y": f"{{1.0f, {grid.zero_point}}}",
        "multiplier": number(float(grid.multiplier[0])), "min": grid.quant_min, "max": grid.quant_max,
    }  # fmt: skip
    return _binary(c, s, "tersor_mul", fields)


def _lookup(c: Context, s: Lookup) -> list[str]:
    x, y = s.reads[0], _written(s)
    layout = y.buffer.layout
    table = c.constant(np.concatenate([s.table[128:], s.table[:128]]))
    planes = f"    const tersor_planes planes = {_planes(y, (x,))};"
    call = f"    LAYER(tersor_lookup)(&planes, {table}, {c.at(x)}, {c.at(y)}, rows.begin, rows.end);"
    return [planes, _rows(layout.blocks * layout.rows), call]


def _pool(c: Context, s: Pool) -> list[str]:
    x, y = s.reads[0], _written(s)
    blocks = y.buffer.layout.blocks
    fields = {
        "block": c.block, "rows": s.rows, "width": s.width, "taps": len(s.taps),
        "x_block": x.affine.block_bytes, "x_row": x.affine.row_bytes,
        "y_block": y.affine.block_bytes, "y_row": y.affine.row_bytes, "tap_offsets": c.constant(s.taps),
    }  # fmt: skip
    if s.requantize is not None:
        fields["bias"] = -s.count * s.input_zero_point + (MAGIC_BITS if s.requantize.magic else 0)
        fields["requantize"] = c.requantize(s.requantize)
    pixels = 1 if s.kind == "global" else s.rows * s.width
    call = f"    LAYER(tersor_{s.kind}_pool)(&pool, {c.at(x)}, {c.at(y)}, tersor_part_of({pixels}, {blocks}, share));"
    return [_struct("tersor_pool", "pool", fields), call]


def _cut_average(c: Context, s: CutAverage) -> list[str]:
    assert s.requantize is not None
    x, y = s.reads[0], _written(s)
    layout = y.buffer.layout
    fields = {
        "blocks": layout.blocks, "block": c.block, "rows": s.plane[0], "width": s.plane[1],
        "x_block": x.affine.block_bytes, "x_row": x.affine.row_bytes,
        "y_block": y.affine.block_bytes, "y_row": y.affine.row_bytes,
        "out_rows": layout.rows, "out_width": layout.width,
        "kernel_y": s.kernel[0], "kernel_x": s.kernel[1], "stride_y": s.stride[0], "stride_x": s.stride[1],
        "pad_y": s.padding[0], "pad_x": s.padding[1], "zero_point": s.input_zero_point, "shared": 0,
        "requantize": c.requantize(s.requantize),
    }  # fmt: skip
    return [
        _struct("tersor_window", "window", fields),
        f"    tersor_layer_average(&window, {c.at(x)}, {c.at(y)}, share);",
    ]


def _matmul(c: Context, s: MatMul) -> list[str]:
    assert s.requantize is not None
    batch, m, k, n = s.sizes
    row, column = (1, k) if s.transposed else (n, 1)
    fields = {
        "batch": batch, "m": m, "k": k, "n": n, "b_row": row, "b_column": column,
        "zero_a": s.zero_points[0], "zero_b": s.zero_points[1], "requantize": c.requantize(s.requantize),
    }  # fmt: skip
    given, y = (c.at(walk) for walk in s.reads), c.at(_written(s))
    call = "tersor_pack_product" if s.packs else "KERNEL(matmul)"
    return [_struct("tersor_product", "product", fields), f"    {call}(&product, {', '.join(given)}, {y}, share);"]


def _softmax(c: Context, s: Softmax) -> list[str]:
    fields = {
        "rows": s.rows, "length": s.length, "exponentials": c.constant(s.exponentials),
        "numerator": f"INT64_C({s.numerator})", "zero_point": s.zero_point, "min": s.quant_min, "max": s.quant_max,
    }  # fmt: skip
    if s.hidden is not None:
        fields |= {"hidden": c.constant(s.hidden.astype(np.int8)), "hidden_rows": len(s.hidden)}
    x, y = c.at(s.reads[0]), c.at(_written(s))
    return [_struct("tersor_softmax", "softmax", fields), f"    tersor_layer_softmax(&softmax, {x}, {y}, share);"]


def _normalize(c: Context, s: Normalize) -> list[str]:
    assert s.requantize is not None
    fields = {
        "rows": s.rows, "length": s.length, "run": s.run, "parameters": s.parameters,
        "root_bits": root_bits(s.length), "zero_point": s.input_zero_point, "center": int(s.center),
        "epsilon": f"INT64_C({s.epsilon})",
        "weight": "0" if s.weight is None else c.constant(s.weight.reshape(-1)),
        "bias": "0" if s.bias is None else c.constant(s.bias.reshape(-1)),
        "requantize": c.requantize(s.requantize),
    }  # fmt: skip
    x, y = c.at(s.reads[0]), c.at(_written(s))
    return [
        _struct("tersor_normalization", "norm", fields),
        f"    tersor_layer_normalize(&norm, {x}, {y}, share);",
    ]


def _linear_output(c: Context, s: LinearOutput) -> list[str]:
    out, width = s.weight.shape
    bias = fold_bias(s.bias, s.weight, s.input_zero_point)[:out]
    fields = {
        "rows": s.rows, "in": width, "out": out, "shared": int(s.scale.size == 1),
        "weights": c.constant(s.weight), "bias": c.constant(bias), "scale": c.constant(s.scale),
    }  # fmt: skip
    call = f"    tersor_layer_linear_float(&linear, {c.at(s.reads[0])}, outputs[{s.index}], share);"
    return [_struct("tersor_linear_float", "linear", fields), call]


def _place(c: Context, s: Place) -> list[str]:
    fields = {"rows": s.rows, "length": s.length, "bytes": s.bytes, "least": int(s.least)}
    call = f"    tersor_layer_place(&place, {c.at(s.reads[0])}, outputs[{s.index}], share);"
    return [_struct("tersor_place", "place", fields), call]


_WRITERS: dict[type[Step], Callable[[Context, Any], list[str]]] = {
    Fill: _fill,
    QuantizeInput: _quantize,
    Gather: _gather,
    DequantizeOutput: _dequantize,
    ToBlocks: _to_blocks,
    FromBlocks: _from_blocks,
    Copy: _copy,
    Phases: _phases,
    Convolution: _convolution,
    Sum: _sum,
    Product: _product,
    Lookup: _lookup,
    Pool: _pool,
    CutAverage: _cut_average,
    MatMul: _matmul,
    Softmax: _softmax,
    Normalize: _normalize,
    LinearOutput: _linear_output,
    Place: _place,
}


def body(context: Context, step: Step) -> list[str]:
    """The lines of one step's function."""
    return _WRITERS[type(step)](context, step)
