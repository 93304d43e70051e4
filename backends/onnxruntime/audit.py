"""Which nodes ONNX Runtime runs in integer: it is asked to optimize the model, and its answer is read.

Fusion keeps the names of the operators that it starts from, with a suffix, so what ONNX Runtime made is traced
back to the program's nodes. A kernel counts as integer by what it reads, not by what it was meant to be.
"""

from __future__ import annotations

import operator
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.printer import operator_name
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.passes.quantization.roles import Role, operands, role_of

from ..base import AuditRow
from ..grids import Grid, grids
from .session import open_session, options
from .support import FLOAT_ONLY

_SUFFIX = re.compile(r"(_token_\d+|/duplicated.*|_nhwc|_quant)$")
_KERNELS = re.compile(r"QLinear\w+|QGemm|QAttention|MatMulInteger\w*|ConvInteger|DynamicQuantize\w+")
_FLOAT_RESULT = re.compile(r"MatMulIntegerToFloat|DynamicQuantizeMatMul")
_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat", "Identity"})
_HIDDEN = (FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC, operator.getitem)
_INTEGERS = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})


def audit(program: Program, model: Path) -> tuple[AuditRow, ...]:
    """A row for each operator on tensors. Raises ArchiveError where ONNX Runtime cannot load the model."""
    kernels = integer_kernels(optimized(model))
    macs = program.cost().nodes
    found = grids(program)
    rows = []
    for node in program.graph.nodes:
        if node.op == "call_function" and _computes(node):
            precision, reason = _judge(program, node, kernels, found)
            rows.append(AuditRow(node.name, operator_name(node.target), precision, macs[node.name].macs, reason))
    return tuple(rows)


def optimized(model: Path) -> onnx.GraphProto:
    """The graph that ONNX Runtime makes of a model on this machine, without its large tensors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        settings = options(1)
        settings.optimized_model_filepath = str(path)
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "tensors.bin")
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        open_session(model, settings=settings)
        return onnx.load(path, load_external_data=False).graph


def integer_kernels(graph: onnx.GraphProto) -> dict[str, bool]:
    """Operators by the names that they had before fusion: whether an integer kernel runs them.

    Where one became several, it is integer if one of them is; quantizing and dequantizing do not count, and what only
    moves values does not where another of them computes.
    """
    stored = {tensor.name for tensor in graph.initializer if tensor.data_type in _INTEGERS}
    moving: set[str] = set()
    kernels: dict[str, bool] = {}
    computing: set[str] = set()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            moving.update(node.output)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        kernel = _KERNELS.fullmatch(node.op_type) is not None
        integer = kernel or bool(node.input and node.input[0] in moving)
        if integer and not _gives_float(node):
            moving.update(name for name in node.output if name not in stored)
        for name in {origin_of(node.name), *map(origin_of, node.output)}:
            if node.op_type not in _MOVES and name not in computing:
                computing.add(name)
                kernels[name] = integer
            elif node.op_type not in _MOVES or name not in computing:
                kernels[name] = kernels.get(name, False) or integer
    return kernels


def _gives_float(node: onnx.NodeProto) -> bool:
    """QGemm's last inputs are the scale and zero point of its result; without them it gives floats."""
    return _FLOAT_RESULT.fullmatch(node.op_type) is not None or (node.op_type == "QGemm" and len(node.input) < 8)


def origin_of(name: str) -> str:
    """The program's node that a kernel of ONNX Runtime was made from."""
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name.split("/")[0]


def _computes(node: fx.Node) -> bool:
    return isinstance(_first(node), Tensor) and node.target not in _HIDDEN


def _first(node: fx.Node) -> Any:
    """The node's value, or the first of several."""
    value = node.meta[KEY]
    return value[0] if isinstance(value, list | tuple) and value else value


def _judge(
    program: Program, node: fx.Node, kernels: Mapping[str, bool], found: Mapping[fx.Node, Grid]
) -> tuple[str, str]:
    """The precision of a node, and why it is not int8 or takes no kernel."""
    integer = kernels.get(node.name)
    bits = _weight_bits(node)
    if bits is not None:
        return f"w{bits}", f"weights of {bits} bits in blocks, activations in float"
    if integer:
        return "int8", ""
    if integer is None and _is_folded_clamp(program, node):
        return "int8", "folded into requantization"
    if integer is None and node in found:
        return "int8", "nothing is left to compute"
    return str(_first(node).dtype).removeprefix("torch."), _reason(program, node, integer, found)


def _weight_bits(node: fx.Node) -> int | None:
    """The bits of a weight in blocks that the node computes with, or picks from."""
    for source in node.all_input_nodes:
        if source.target is FAKE_QUANTIZE_BLOCKS:
            return 4 if int(source.args[-1]) <= 7 else 8  # type: ignore[arg-type]  # by its schema
    return None


def _is_folded_clamp(program: Program, node: fx.Node) -> bool:
    users = list(node.users)
    if role_of(program, node) is not Role.CLAMP or len(users) != 1:
        return False
    return users[0].target is FAKE_QUANTIZE or _is_folded_clamp(program, users[0])


def _reason(program: Program, node: fx.Node, integer: bool | None, found: Mapping[fx.Node, Grid]) -> str:
    """Why a node is not integer; the first that holds."""
    sources = operands(program, node)
    reasons = (
        (not found, "the program is not quantized"),
        (not _first(node).is_floating_point(), "not an operator on floats"),
        (integer is None, "part of another operator, or computed when the model is loaded"),
        (node.target in FLOAT_ONLY, f"ONNX Runtime has no integer kernel for {FLOAT_ONLY.get(node.target)} on x86"),
        (not all(source in found for source in sources), "what it reads is not quantized"),
    )
    return next((text for holds, text in reasons if holds), "ONNX Runtime did not fuse it into an integer kernel")
