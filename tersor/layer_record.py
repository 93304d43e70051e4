"""What is known of each layer of a compressed program: bytes, work, error, zeros, and what the target runs it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tersor.backends.base import AuditRow
from tersor.ir.cost import NodeCost
from tersor.ir.example import example_of
from tersor.ir.integer_operators import DEQUANTIZE, QUANTIZE, REQUANTIZE
from tersor.ir.origin import Origin
from tersor.ir.printer import operator_name
from tersor.ir.program import REPLACES, Program
from tersor.ir.shapes import KEY
from tersor.ir.sparsity import NM, Block, Channel, Pattern
from tersor.ir.stage import Stage
from tersor.passes.compare import node_values, sqnr
from tersor.passes.quantization.injection import QUANTIZERS, Injection, quantizers_of

from .analysis import precision_of
from .run_record import Layer

_GRIDLESS = "the same program without its grids"
_BEFORE = "the program before the first pass that changes numbers"
_CONVERSIONS = QUANTIZERS | {QUANTIZE, DEQUANTIZE, REQUANTIZE}


def layers_of(
    program: Program,
    given: Program | None = None,
    errors: Mapping[str, float] | None = None,
    audit: Sequence[AuditRow] = (),
) -> tuple[Layer, ...]:
    """A row for each node of a program that multiplies or owns parameters, in graph order.

    given: the program that it was made from. errors: dB by node. audit: what the target says of each node.
    """
    cost = program.cost().nodes
    before = {} if given is None else _costs_before(given)
    calls = [node for node in program.graph.nodes if node.op == "call_function" and node.target not in _CONVERSIONS]
    nodes = [node for node in calls if cost[node.name].macs or _weights(program, node)]
    measured = errors or {}
    placed = _placed(nodes, {name: found.macs for name, found in cost.items()}, audit)
    rows = []
    for node in nodes:
        known = node.meta.get(REPLACES, node.name)
        found, origin = placed.get(node.name), Origin.of(node)
        earlier = before.get(node.name) or before.get(_place(node))
        density, pattern = _zeros(program, node)
        rows.append(
            Layer(
                name=node.name,
                operator=operator_name(node.target),
                module="" if origin is None else origin.module,
                bytes=cost[node.name].parameter_bytes,
                macs=cost[node.name].macs,
                bytes_before=None if earlier is None else earlier.parameter_bytes,
                macs_before=None if earlier is None else earlier.macs,
                error=measured.get(node.name, measured.get(known)),
                density=density,
                pattern=pattern,
                precision=_precision(node),
                runs_in="" if found is None else found.precision,
                reason="" if found is None else found.reason,
            )
        )
    return tuple(rows)


def _costs_before(given: Program) -> dict[str, NodeCost]:
    """The cost of each node by name, and of each that multiplies by its place in the model where it is alone there."""
    found = dict(given.cost().nodes)
    busy = [node for node in given.graph.nodes if found[node.name].macs]
    places = [_place(node) for node in busy]
    return found | {
        place: found[node.name] for node, place in zip(busy, places, strict=True) if places.count(place) == 1
    }


def _place(node: fx.Node) -> str:
    """The module of the model that a node came from, in a form that no name of a node has."""
    origin = Origin.of(node)
    return f"in {origin.module}" if origin is not None and origin.module else ""


def layer_errors(
    program: Program, exact: Program | None = None, quantized: Program | None = None
) -> tuple[dict[str, float], str]:
    """SQNR in dB of each node's value on the example, by name, and what it was compared with.

    A quantized program is compared with itself off its grids; another with `exact`, the program before anything changed
    numbers, where a node kept its name and shape. An integer program is judged by the one it was lowered from.
    """
    judged = quantized if program.stage is Stage.INTEGER else program
    if judged is None:
        return {}, ""
    inputs = example_of(judged)
    if any(node.target in QUANTIZERS for node in judged.graph.nodes):
        values = Injection(judged, inputs).values
        reference = {node.name: value for node, value in values.items()}
        return _errors(reference, judged, inputs), _GRIDLESS
    if exact is None or exact is judged:
        return {}, ""
    reference = {}
    node_values(exact, inputs, lambda node, value: reference.update({node.name: value}))
    return _errors(reference, judged, inputs), _BEFORE


def _errors(reference: Mapping[str, Any], program: Program, inputs: Sequence[Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}

    def visit(node: fx.Node, value: Any) -> None:
        exact = reference.get(node.name)
        if not (node.op == "call_function" and isinstance(value, Tensor) and isinstance(exact, Tensor)):
            return
        if value.is_floating_point() and value.shape == exact.shape:
            found[node.name] = sqnr(exact, value)
            # A node that is lowered further stands for the same one as this, which may be one before it.
            if node.target not in _CONVERSIONS:
                found.setdefault(node.meta.get(REPLACES, node.name), found[node.name])

    node_values(program, inputs, visit)
    return found


def _placed(nodes: Sequence[fx.Node], macs: Mapping[str, int], audit: Sequence[AuditRow]) -> dict[str, AuditRow]:
    """What the target says of each node. A target that lowers further names its own nodes: then those that multiply are
    matched in order, where all of them agree in their multiply-accumulates."""
    named = {row.node: row for row in audit}
    if any(node.name in named for node in nodes):
        return named
    ours, theirs = [node for node in nodes if macs[node.name]], [row for row in audit if row.macs]
    if [macs[node.name] for node in ours] != [row.macs for row in theirs]:
        return {}
    return {node.name: row for node, row in zip(ours, theirs, strict=True)}


def _weights(program: Program, node: fx.Node) -> list[str]:
    """The names of the parameters that a node computes with, quantized or not; indices and masks are none."""
    found = []
    for source in node.all_input_nodes:
        if source.target in _CONVERSIONS and isinstance(source.args[0], fx.Node):
            source = source.args[0]
        if source.op == "get_attr" and _computes(program.tensor(str(source.target))):
            found.append(str(source.target))
    return found


def _computes(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype is torch.int8


def _zeros(program: Program, node: fx.Node) -> tuple[float | None, str]:
    """The share of a node's matrices that is not zero, and the pattern that they are promised to have."""
    names = _weights(program, node)
    matrices = [tensor for name in names if (tensor := program.tensor(name)).dim() > 1]
    total = sum(tensor.numel() for tensor in matrices)
    kept = sum(int(tensor.count_nonzero()) for tensor in matrices)
    patterns = [pattern_text(program.sparsity[name]) for name in names if name in program.sparsity]
    return (kept / total if total else None), ", ".join(dict.fromkeys(patterns))


def pattern_text(pattern: Pattern) -> str:
    """`2:4`, `4x4 blocks`, `unstructured`, `8 channels`."""
    if isinstance(pattern, NM):
        return f"{pattern.n}:{pattern.m}"
    if isinstance(pattern, Block):
        return f"{pattern.rows}x{pattern.columns} blocks"
    return f"{len(pattern.indices)} channels" if isinstance(pattern, Channel) else pattern.name


def _precision(node: fx.Node) -> str:
    """The grids that a node reads, or the types of what it reads where it has none."""
    if quantizers_of(node):
        return precision_of(node)
    tensors = [value for source in node.all_input_nodes if isinstance(value := source.meta[KEY], Tensor)]
    # Indices and integer biases say nothing of how precisely a node computes.
    telling = [tensor for tensor in tensors if _computes(tensor)] or tensors
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in telling}))
