"""A model of how long a program takes on some machine: each product measured alone at a few sizes, once.

The time of a program is that of its products, read from the table between the sizes measured, and of the rest, which is
taken to grow with the values that it writes. Whoever has the machine gives the clock: a function from a program to
seconds. Passes know no machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import Structure

from ..progress import track
from .analysis import dimensions
from .axes import Axis, Remaining, frozen
from .costs import Costs, Shape

aten = torch.ops.aten
Clock = Callable[[Program], float]
"""The seconds that one call of a program takes."""

_FRACTIONS = (1.0, 0.5, 0.25, 0.125)
_MEASURED_AXES = 2


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of a program by its shapes, for `Latency(share, table)`. Make one with `measure`.

    products: for each node's kind and full shapes, the sizes of the axes that can shrink, with the seconds of a grid of
    sizes. rest: seconds of everything else. values: how many values everything else writes at full size.
    """

    products: dict[str, tuple[Shape, dict[Shape, float]]]
    rest: float
    values: int

    @classmethod
    def measure(cls, program: Program, clock: Clock) -> LatencyTable:
        """Measure every product that differs from the others, at some sizes of its axes, and the program as a whole.

        Raises PassError where the clock gives no time.
        """
        costs = Costs(program, dimensions(program))
        idle = _seconds(clock, _alone([(2, 2)]))
        products: dict[str, tuple[Shape, dict[Shape, float]]] = {}
        for node in track(costs.products, "latency of products"):
            key = _key(node, costs)
            if key not in products:
                products[key] = _grid(node, costs, clock, idle)
        table = cls(products, 0.0, max(1, costs.values(Remaining({}))))
        rest = max(0.0, _seconds(clock, program) - table(costs, Remaining({})))
        return cls(products, rest, table.values)

    def __call__(self, costs: Costs, left: Remaining) -> float:
        """Seconds with so many indices left. Raises PassError for a program that the table was not measured on."""
        total = self.rest * costs.values(left) / self.values
        for node in costs.products:
            found = self.products.get(_key(node, costs))
            if found is None:
                raise PassError("the latency table is of another program", node=node, hint="measure this one")
            full, grid = found
            sizes = tuple(left.size(axis) for axis in _axes(node, costs))
            total += _read(grid, full, sizes) if full else grid[()] * costs.share(node, left)
        return total


def _key(node: fx.Node, costs: Costs) -> str:
    shapes = [costs.full(value) for value in (*node.all_input_nodes, node)]
    constants = fx.node.map_arg((node.args, node.kwargs), lambda value: None)
    return f"{node.target} {shapes} {constants} {_pattern(node, costs)}"


def _pattern(node: fx.Node, costs: Costs) -> list[list[int]]:
    """Which dimensions of the operands shrink together."""
    axes = _axes(node, costs)
    return [
        [axes.index(axis.find()) if axis.find() in axes else -1 for axis in costs.found.values[value]]
        for value in (*node.all_input_nodes, node)
    ]


def _axes(node: fx.Node, costs: Costs) -> list[Axis]:
    """The axes of a product's operands that can shrink, each once."""
    found: dict[Axis, None] = {}
    for value in node.all_input_nodes:
        for axis in costs.found.values[value]:
            if not frozen(axis):
                found.setdefault(axis.find())
    return list(found)


def _grid(node: fx.Node, costs: Costs, clock: Clock, idle: float) -> tuple[Shape, dict[Shape, float]]:
    """The seconds of one product at all combinations of sizes; at full size alone where axes hang together."""
    axes = _axes(node, costs)
    if len(axes) > _MEASURED_AXES or not _independent(node, costs):
        return (), {(): max(_seconds(clock, _single(node, costs, {})) - idle, 1e-9)}
    full = tuple(axis.size for axis in axes)
    choices = [sorted({max(1, round(size * part)) for part in _FRACTIONS}) for size in full]
    grid = {}
    for sizes in itertools.product(*choices):
        single = _single(node, costs, dict(zip(axes, sizes, strict=True)))
        grid[sizes] = max(_seconds(clock, single) - idle, 1e-9)
    return full, grid


def _independent(node: fx.Node, costs: Costs) -> bool:
    """Whether any sizes of its axes make a call: not in a grouped convolution with several channels a group."""
    groups = node.args[6] if len(node.args) > 6 and "conv" in str(node.target) else 1
    weight = costs.full(node.all_input_nodes[1]) if len(node.all_input_nodes) > 1 else ()
    return bool(groups == 1 or (weight[1:2] == (1,) and weight[0] == groups))


def _single(node: fx.Node, costs: Costs, sizes: dict[Axis, int]) -> Program:
    """A program of that one call, with its operands at other sizes: values are inputs, tensors are random."""
    shapes: dict[fx.Node, Shape] = {}
    for value in node.all_input_nodes:
        axes = costs.found.values[value]
        shapes[value] = tuple(
            sizes.get(axis.find(), given) for axis, given in zip(axes, costs.full(value), strict=True)
        )
    args: Any = node.args
    if len(args) > 6 and "conv" in str(node.target) and args[6] != 1:
        args = (*args[:6], shapes[node.all_input_nodes[1]][0], *args[7:])
    return _alone([], node=node, args=args, shapes=shapes)


def _alone(
    plain: Sequence[Shape], node: fx.Node | None = None, args: Any = (), shapes: dict[fx.Node, Shape] | None = None
) -> Program:
    graph = fx.Graph()
    tensors: dict[str, Tensor] = {}
    made: dict[fx.Node, fx.Node] = {}
    specs: list[TensorSpec] = []
    for value, shape in (shapes or {}).items():
        name = f"x{len(made)}"
        if value.op == "get_attr":
            tensors[name] = nn.Parameter(torch.randn(shape) * 0.1)
            made[value] = graph.get_attr(name)
        else:
            made[value] = graph.placeholder(name)
            specs.append(TensorSpec(name, value.meta[KEY].dtype, shape))
    if node is None:
        made_input = graph.placeholder("x")
        specs = [TensorSpec("x", torch.float32, plain[0])]
        graph.output((graph.call_function(aten.relu.default, (made_input,)),))
    else:
        call = graph.call_function(
            node.target,  # type: ignore[arg-type]  # an operator
            fx.node.map_arg(args, lambda value: made[value]),
            fx.node.map_arg(node.kwargs, lambda value: made[value]),
        )
        graph.output((call,))
    names = tuple(spec.name for spec in specs)
    leaf = Structure("leaf")
    structure = Structure("tuple", (leaf,) * len(specs))
    signature = Signature(tuple(specs), structure, Structure("dict"), leaf, names)
    # placeholders come first
    for placeholder in reversed([n for n in graph.nodes if n.op == "placeholder"]):
        graph._root.append(placeholder)
    return Program.build(graph, tensors, signature, name="product")


def _read(grid: dict[Shape, float], full: Shape, sizes: Shape) -> float:
    """Between the sizes measured, linearly along each axis; beyond them, along the last segment."""
    columns = [sorted({key[place] for key in grid}) for place in range(len(full))]
    corners: list[list[tuple[int, float]]] = []
    for column, size in zip(columns, sizes, strict=True):
        above = next((place for place, known in enumerate(column) if known >= size), len(column) - 1)
        if column[above] == size or len(column) == 1:
            corners.append([(column[above], 1.0)])
            continue
        above = max(above, 1)
        low, high = column[above - 1], column[above]
        part = (size - low) / (high - low)
        corners.append([(low, 1 - part), (high, part)])
    total = 0.0
    for corner in itertools.product(*corners):
        total += grid[tuple(size for size, _ in corner)] * math.prod(weight for _, weight in corner)
    return max(total, 1e-9)


def _seconds(clock: Clock, program: Program) -> float:
    found = float(clock(program))
    if not math.isfinite(found) or found < 0:
        raise PassError("the clock gives no time", found=found)
    return found
