"""Which products an engine runs in int8, read back from its kernels, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.printer import operator_name
from tersor.ir.program import Program
from tersor.ir.sparsity import NM
from tersor.ir.stage import Stage
from tersor.passes.rewriting.expand_attention import ATTENTION

from ..base import AuditRow
from ..grids import grids
from .engine_file import LayerRow
from .kernels import Kernel, Port
from .layer_costs import LEAST_CHANNELS

_MULTIPLIES = re.compile(r"corr|conv|fully_connected|gemm|matmul|matrix_?multiply|mha|attention|runtime_fusion", re.I)
UNREAD = "the engine's kernels could not be read"


def audit(program: Program, kernels: Sequence[Kernel]) -> tuple[LayerRow, ...]:
    """A row for every node of the program that multiplies and accumulates, in order."""
    costs = program.cost().nodes
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and costs[node.name].macs]
    known = {node.name: node for node in program.graph.nodes}
    of_node: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for name in dict.fromkeys(map(_origin, kernel.layers)):
            of_node.setdefault(name, []).append(kernel)
    reasons = _Reasons(program)
    return tuple(_row(node, costs[node.name].macs, of_node.get(node.name, []), known, reasons) for node in nodes)


def as_audit_rows(rows: Iterable[LayerRow]) -> tuple[AuditRow, ...]:
    """The rows in the form that all targets share."""
    return tuple(AuditRow(row.node, row.operator, _precision(row), row.macs, row.why) for row in rows)


def _precision(row: LayerRow) -> str:
    """`w4` is a product of floats whose weights alone have 4 bits."""
    if row.integer:
        return "int8"
    return "w4" if row.weights == "int4" else row.activations or "unknown"


def types_of_products(kernels: Iterable[Kernel]) -> dict[str, tuple[str, str]]:
    """By ONNX node, the types of the weights and activations that the kernel for it multiplies."""
    found: dict[str, tuple[str, str]] = {}
    for kernel in kernels:
        if _multiplies(kernel):
            found.update(dict.fromkeys(kernel.layers, _operands(kernel)))
    return found


def sparsity_note(program: Program, rows: Iterable[LayerRow]) -> str | None:
    """How many weights are 2:4 sparse, large enough for sparse kernels, and stored sparse; None where none is."""
    names = [name for name, pattern in program.sparsity.items() if pattern == NM(2, 4)]
    if not names:
        return None
    fit = sum(_is_large(program, name) for name in names)
    stored = sum(row.sparse for row in rows)
    return f"2:4 sparse weights: {len(names)}, of which {fit} have channels enough, and {stored} are stored sparse"


def _is_large(program: Program, name: str) -> bool:
    shape = program.tensor(name).shape
    return len(shape) > 1 and min(shape[:2]) >= LEAST_CHANNELS


def _row(
    node: fx.Node, macs: int, kernels: Sequence[Kernel], known: Mapping[str, fx.Node], reasons: _Reasons
) -> LayerRow:
    name = operator_name(node.target)
    products = [kernel for kernel in kernels if _multiplies(kernel)] or list(kernels)
    if not products:
        return LayerRow(node.name, name, macs, "", "", "", why=reasons.no_kernel(node))
    read = [_operands(kernel) for kernel in products]
    weights, activations = (_widest([pair[side] for pair in read]) for side in (0, 1))
    fused = {_origin(layer) for kernel in products for layer in kernel.layers} - {node.name}
    row = LayerRow(
        node.name,
        name,
        macs,
        weights,
        activations,
        "+".join(kernel.kind if kernel.kind != "function" else kernel.name for kernel in products),
        tuple(sorted(other for other in fused if other in known and known[other].target not in _GRIDS)),
        any(port.sparse for kernel in products if (port := kernel.weight) is not None),
    )
    return row if row.integer else LayerRow(**{**row.__dict__, "why": reasons.of(node, products)})


_GRIDS = (FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, FAKE_QUANTIZE_BLOCKS)


def _origin(layer: str) -> str:
    """The program's node of an ONNX node."""
    return layer.split("/")[0]


def _multiplies(kernel: Kernel) -> bool:
    """Judged by the kind of the step, and of a generated function by its name, as `_gemm_mha_v2`."""
    generated = kernel.kind in ("function", "kgen")
    return (
        _MULTIPLIES.search(kernel.name if generated and not kernel.name.startswith("__myl") else kernel.kind)
        is not None
    )


def _operands(kernel: Kernel) -> tuple[str, str]:
    """The types of a product's weights and activations; of two activations, the second and the first."""
    read, weight = kernel.activations, kernel.weight
    if weight is not None:
        return weight.dtype, read[0].dtype if read else ""
    return _first(read[1:]), _first(read)


def _first(ports: Sequence[Port]) -> str:
    return ports[0].dtype if ports else ""


def _widest(types: Sequence[str]) -> str:
    """Of several kernels the type with most bits: one that is not int8 is not hidden by one that is."""
    order = {"int8": 0, "int4": 0, "float8": 1, "float16": 2, "bfloat16": 2, "float32": 3}
    return max(types, key=lambda dtype: order.get(dtype, 4))


class _Reasons:
    """Why a product does not run in int8; the first that holds."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.grids = grids(program)

    def no_kernel(self, node: fx.Node) -> str:
        return "no kernel names it: it was computed when the engine was built, or is one with an equal node"

    def of(self, node: fx.Node, kernels: Sequence[Kernel]) -> str:
        read = [argument for argument in node.args if isinstance(argument, fx.Node)][:2]
        on_grid = [argument in self.grids for argument in read]
        attention = node.target is ATTENTION
        blocks = len(read) > 1 and read[1].target is FAKE_QUANTIZE_BLOCKS
        narrow = any(kernel.weight is not None and kernel.weight.dtype == "int4" for kernel in kernels)
        float8 = any(port.dtype == "float8" for kernel in kernels for port in kernel.activations)
        reasons = (
            (self.program.stage is Stage.FLOAT, "the program is not quantized"),
            (any(kernel.attends for kernel in kernels), "attention, in the one kernel that TensorRT has for it"),
            (attention, "attention, of a shape or a type that TensorRT has no one kernel for"),
            (float8, "as float8, which was asked for"),
            (blocks and narrow, "its weights alone have 4 bits, and the kernel reads them so"),
            (blocks, "its weights alone have 8 bits, and a kernel of its own makes floats of them at each run"),
            (all(on_grid), "TensorRT chose a float kernel"),
            (on_grid[1:] == [True], "its weights alone are on a grid"),
        )
        return next((text for holds, text in reasons if holds), "what it reads is not on a grid")
