"""What learned rounding reconstructs at a time: one layer, or a block of layers with all that is between them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tersor.ir.origin import Origin
from tersor.ir.program import Program

from .injection import QUANTIZERS
from .weight_grid import QuantizedLayer

aten = torch.ops.aten


class Scope(enum.Enum):
    """LAYER: each layer's own output, as AdaRound. BLOCK: the output of a block of the model, as BRECQ."""

    LAYER = "layer"
    BLOCK = "block"


@dataclass(frozen=True)
class Unit:
    """Layers whose rounding is learned together.

    nodes: what is computed, in graph order, from `inputs` to `output`. Quantizers of the layers' weights are among the
    nodes; constants are read from the program.
    """

    layers: tuple[QuantizedLayer, ...]
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    output: fx.Node

    def run(self, program: Program, given: Mapping[fx.Node, Any], weights: Mapping[fx.Node, Any]) -> Any:
        """The output from values of the inputs; `weights` stand in place of what those quantizers give."""
        values: dict[fx.Node, Any] = {**given, **weights}
        for node in self.nodes:
            if node in values:
                continue
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in values:
                    values[source] = program.tensor(str(source.target)).detach()
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            target: Callable[..., Any] = node.target  # type: ignore[assignment]  # an operator
            values[node] = target(*args, **kwargs)
        return values[self.output]


def units(program: Program, layers: Sequence[QuantizedLayer], scope: Scope) -> list[Unit]:
    """The units of a program, in graph order."""
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    groups = [[layer] for layer in layers] if scope is Scope.LAYER else _blocks(layers)
    return [_unit(group, order) for group in groups]


def _blocks(layers: Sequence[QuantizedLayer]) -> list[list[QuantizedLayer]]:
    """Neighbouring layers of one repeated module, as `encoder.layer.3`; others each alone."""
    groups: list[list[QuantizedLayer]] = []
    last: str | None = None
    for layer in layers:
        block = _block(layer)
        if block is not None and block == last:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last = block
    return groups


def _block(layer: QuantizedLayer) -> str | None:
    """The path of the module up to its first number, which is how repeated blocks are named."""
    origin = Origin.of(layer.node)
    parts = (origin.module if origin is not None else "").split(".")
    places = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: places[0] + 1]) if places else None


def _unit(layers: Sequence[QuantizedLayer], order: Mapping[fx.Node, int]) -> Unit:
    """What is computed from the first layer to the last, and the residual add behind it where there is one."""
    first = min(order[layer.node] for layer in layers)
    output = layers[-1].node
    users = list(output.users)
    if len(layers) > 1 and len(users) == 1 and users[0].target is aten.add.Tensor:
        output = users[0]
    nodes: set[fx.Node] = set()
    inputs: dict[fx.Node, None] = {}
    weights = {layer.quantizer for layer in layers}
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node in nodes or node in inputs or node.op == "get_attr":
            continue
        if node not in weights and (node.op != "call_function" or not _belongs(node, first, order)):
            inputs[node] = None
            continue
        nodes.add(node)
        waiting += node.all_input_nodes
    return Unit(tuple(layers), tuple(sorted(nodes, key=order.__getitem__)), tuple(inputs), output)


def _belongs(node: fx.Node, first: int, order: Mapping[fx.Node, int]) -> bool:
    """Whether a node is computed within the unit: at or after its first layer, or a grid of constants."""
    constant = node.target in QUANTIZERS and all(source.op == "get_attr" for source in node.all_input_nodes)
    return constant or order[node] >= first


def layers_of(found: Iterable[Unit]) -> int:
    """How many layers the units have."""
    return sum(len(unit.layers) for unit in found)
