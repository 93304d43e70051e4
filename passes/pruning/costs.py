"""What a program would cost with fewer indices, without cutting it: parameters, bytes, multiply-accumulates, time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx

from tersor.ir.macs import RULES as MULTIPLIES
from tersor.ir.macs import multiply_accumulates
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .analysis import Dimensions
from .axes import Axis, Remaining, leaves

Shape = tuple[int, ...]


@dataclass(frozen=True)
class IndexCost:
    """What one index of a group costs: trainable values, their bytes, multiply-accumulates."""

    parameters: int
    parameter_bytes: int
    macs: int


class Costs:
    """The costs of one program by how many indices of its leaves stay.

    Dynamic dimensions count as 1, as in `program.cost()`.
    """

    def __init__(self, program: Program, found: Dimensions) -> None:
        self.program = program
        self.found = found
        self.products = [node for node in program.graph.nodes if node.target in MULTIPLIES]
        self.stored = [
            (tensor.element_size(), found.tensors[name])
            for name, tensor in program.parameters().items()
            if name in found.tensors
        ]
        sizes = {name: max(1, span.low) for name, span in program.signature.dims.items()}
        self._given: Callable[[Tensor], Shape] = lambda tensor: tuple(
            program.shapes.evaluate(size, sizes) for size in tensor.shape
        )

    @cached_property
    def _tensors(self) -> dict[int, tuple[Shape, tuple[Axis, ...]]]:
        """Sizes and axes of what products read and give, by the identity of its fake tensor."""
        nodes = {value: None for node in self.products for value in (node, *node.all_input_nodes)}
        return {
            id(node.meta[KEY]): (self._given(node.meta[KEY]), self.found.values[node])
            for node in nodes
            if isinstance(node.meta[KEY], Tensor)
        }

    def shapes(self, left: Remaining) -> Callable[[Tensor], Shape]:
        """A function from a tensor of the graph to the sizes that it would have."""

        def sizes(tensor: Tensor) -> Shape:
            given, axes = self._tensors[id(tensor)]
            return tuple(size * left.size(axis) // axis.size for size, axis in zip(given, axes, strict=True))

        return sizes

    def macs(self, left: Remaining) -> int:
        """Multiply-accumulates; only products that a leaf touches are counted anew."""
        touched = {node for leaf in left.counts for node in self._products_of.get(leaf, ()) if left.touches(leaf)}
        sizes = self.shapes(left)
        return self._whole + sum(multiply_accumulates(node, sizes) - self._each[node] for node in touched)

    @cached_property
    def _each(self) -> dict[fx.Node, int]:
        """Multiply-accumulates of every product as it is."""
        sizes = self.shapes(Remaining({}))
        return {node: multiply_accumulates(node, sizes) for node in self.products}

    @cached_property
    def _whole(self) -> int:
        return sum(self._each.values())

    @cached_property
    def _products_of(self) -> dict[Axis, list[fx.Node]]:
        """The products whose sizes depend on a leaf."""
        found: dict[Axis, list[fx.Node]] = {}
        for node in self.products:
            values = [self.found.values[value] for value in (node, *node.all_input_nodes)]
            inside = {leaf for axes in values for axis in axes or () for leaf in leaves(axis)}
            for leaf in inside:
                found.setdefault(leaf, []).append(node)
        return found

    def parameters(self, left: Remaining) -> int:
        """Values of trainable parameters, tied ones once."""
        return sum(math.prod(map(left.size, axes)) for _, axes in self.stored)

    def parameter_bytes(self, left: Remaining) -> int:
        """Bytes of trainable parameters as they are stored now."""
        return sum(width * math.prod(map(left.size, axes)) for width, axes in self.stored)

    def of_index(self, leaf: Axis) -> IndexCost:
        """What goes with one index of a leaf while all others stay."""
        whole, less = Remaining({}), Remaining({leaf: leaf.find().size - 1})
        return IndexCost(
            self.parameters(whole) - self.parameters(less),
            self.parameter_bytes(whole) - self.parameter_bytes(less),
            self.macs(whole) - self.macs(less),
        )

    def full(self, node: fx.Node) -> Shape:
        """The sizes of a node now, dynamic ones as 1."""
        return self._given(node.meta[KEY])

    def share(self, node: fx.Node, left: Remaining) -> float:
        """What is left of one product's multiply-accumulates."""
        whole = multiply_accumulates(node, self.shapes(Remaining({})))
        return multiply_accumulates(node, self.shapes(left)) / max(whole, 1)

    def values(self, left: Remaining) -> int:
        """How many values the operators that are no products write."""
        return sum(self._written(node, left) for node in self._others)

    def works(self, node: fx.Node) -> bool:
        """Whether it is a call that `work` can count."""
        return node in self._each or node in self._others

    def work(self, node: fx.Node, left: Remaining) -> int:
        """Multiply-accumulates of a product; of any other operator, the values that it writes."""
        if node in self._others:
            return self._written(node, left)
        touched = any(left.touches(leaf) for leaf in left.counts if node in self._products_of.get(leaf, ()))
        return multiply_accumulates(node, self.shapes(left)) if touched else self._each[node]

    def _written(self, node: fx.Node, left: Remaining) -> int:
        given, axes = self._others[node]
        return math.prod(size * left.size(axis) // axis.size for size, axis in zip(given, axes, strict=True))

    @cached_property
    def _others(self) -> dict[fx.Node, tuple[Shape, tuple[Axis, ...]]]:
        products = set(self.products)
        return {
            node: (self.full(node), self.found.values[node])
            for node in self.program.graph.nodes
            if node.op == "call_function" and node not in products and isinstance(node.meta[KEY], Tensor)
        }
