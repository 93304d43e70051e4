"""What TensorRT takes: a few types and quantizations less than ONNX can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.origin import Origin
from tersor.ir.printer import operator_name
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..base import Unsupported

if TYPE_CHECKING:
    from ..onnx.builder import OnnxOptions

Reason = tuple[str, str | None]
Rule = Callable[[Program, fx.Node], "Reason | None"]

_DTYPES = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.int8, torch.uint8, torch.bool}
)
_MOST_RANK = 8


def unsupported_nodes(program: Program, options: OnnxOptions) -> list[Unsupported]:
    """The nodes that cannot be written as ONNX or that TensorRT refuses, in order, each once."""
    from ..onnx.emit import unsupported

    refused = {reason.node: reason for reason in unsupported(program, options)}
    found = []
    for node in program.graph.nodes:
        reason = refused.get(node.name) or _refusal(program, node)
        if reason is not None:
            found.append(reason)
    return found


def needs_opset_21(program: Program) -> bool:
    """Whether a weight is on a grid of 4 bits or in blocks, which came with opset 21."""
    if program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BLOCKS):
        return True
    nodes = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    return any(program.constant(node.args[0]) is not None and int(node.args[5]) < 8 for node in nodes)


def _refusal(program: Program, node: fx.Node) -> Unsupported | None:
    if node.op not in ("call_function", "placeholder"):
        return None
    for rule in RULES:
        reason = rule(program, node)
        if reason is not None:
            name = operator_name(node.target) if node.op == "call_function" else "input"
            return Unsupported(node.name, name, *reason, Origin.of(node))
    return None


def _dtype(program: Program, node: fx.Node) -> Reason | None:
    wrong = [value.dtype for value in _tensors(node) if value.dtype not in _DTYPES]
    if not wrong:
        return None
    return f"TensorRT has no {str(wrong[0]).removeprefix('torch.')}", "trace the model in float32"


def _rank(program: Program, node: fx.Node) -> Reason | None:
    ranks = [value.dim() for value in _tensors(node) if value.dim() > _MOST_RANK]
    return (f"{ranks[0]} dimensions; TensorRT has at most {_MOST_RANK}", None) if ranks else None


def _zero_point(program: Program, node: fx.Node) -> Reason | None:
    if node.target not in (FAKE_QUANTIZE, FAKE_QUANTIZE_BLOCKS):
        return None
    zero = program.constant(node.args[2])
    if zero is None or not bool(zero.any()):
        return None
    if node.target is FAKE_QUANTIZE_BLOCKS:
        return "weights in blocks with zero points", "QuantizeWeights(symmetric=True)"
    return "a zero point that is not 0", "run SymmetrizeGrids, as `lower` does, or quantize with INT8_SYMMETRIC"


def _dynamic(program: Program, node: fx.Node) -> Reason | None:
    if node.target is not FAKE_QUANTIZE_DYNAMIC:
        return None
    return "activations on a grid found at run time", "static grids, as Quantize(INT8_SYMMETRIC) gives"


def _channels(program: Program, node: fx.Node) -> Reason | None:
    if node.target is not FAKE_QUANTIZE or node.args[3] is None or program.constant(node.args[0]) is not None:
        return None
    return "activations on one scale a channel", "one scale a tensor, as Quantize gives"


def _tensors(node: fx.Node) -> list[Tensor]:
    value = node.meta.get(KEY)
    return [part for part in (value if isinstance(value, list | tuple) else [value]) if isinstance(part, Tensor)]


RULES: tuple[Rule, ...] = (_dtype, _rank, _zero_point, _channels, _dynamic)
"""What TensorRT refuses beside what ONNX cannot say: each gives a reason and what to try, or None."""
