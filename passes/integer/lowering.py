"""The machinery of lowering to integers: what reads and writes the graph for the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.accumulators import INT32_LIMIT, accumulator_range, value_range
from tersor.ir.errors import PassError
from tersor.ir.integer_operators import DEQUANTIZE, INT_LOOKUP, QUANTIZE, REQUANTIZE
from tersor.ir.operators import quantize_to_grid
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from ..quantization.integer_grid import IntegerGrid, table
from ..quantization.roles import Role, clamp_range, operands, role_of
from .pointwise import Pointwise


@dataclass(frozen=True)
class Rules:
    """The integer forms of operators, by operator.

    values: of a node whose inputs decide its grid; gives its dequantize, or None where it stays float.
    grids: of a node whose result is wanted on a grid; gives the int8, or None.
    move: the same movement of int8 values, given them by what they stand for, and the zero point that pads.
    """

    values: Mapping[object, Callable[[Lowering, fx.Node], fx.Node | None]]
    grids: Mapping[object, Callable[[Lowering, fx.Node, IntegerGrid], fx.Node | None]]
    move: Callable[[Lowering, fx.Node, Mapping[fx.Node, fx.Node], int], fx.Node | None]


@dataclass
class Lowering:
    """The state of one lowering. The graph stays a running one: an integer value is read through its dequantize."""

    program: Program
    rules: Rules
    memo: dict[tuple[fx.Node, IntegerGrid], fx.Node] = field(default_factory=dict)
    parts: dict[fx.Node, fx.Node] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        """Replace one node by its integer form, where it has one."""
        rule = self.rules.values.get(node.target)
        if node.op != "call_function" or rule is None:
            return
        with self.program.graph.inserting_before(node):
            result = rule(self, node)
        if result is not None:
            self.program.replace(node, result)

    # -- reading ---------------------------------------------------------------------------------------------------

    def integer(self, value: object, dtype: torch.dtype = torch.int8) -> fx.Node | None:
        """The dequantize node behind a value that is held as integers of that type."""
        if isinstance(value, fx.Node) and value.target is DEQUANTIZE and _dtype(value.args[0]) is dtype:
            return value
        return None

    def scale(self, dequantized: fx.Node) -> Tensor:
        """The scale of a dequantized value."""
        tensor = self.program.constant(dequantized.args[1])
        assert tensor is not None
        return tensor.detach()

    def same_values(self, left: fx.Node, right: fx.Node) -> bool:
        """Whether two dequantized values are on the same grid."""
        return left.args[2:] == right.args[2:] and torch.equal(self.scale(left), self.scale(right))

    # -- writing ---------------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
        """Insert an operator."""
        return self.program.call(target, args, like=like, **kwargs)

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """A new buffer, read."""
        return self.program.attribute(self.program.add_tensor(name, value))

    def parameter(self, name: str, value: Tensor) -> fx.Node:
        """A new tensor that counts as a parameter of the model, read. Integers are not trained."""
        return self.constant(name, nn.Parameter(value, requires_grad=False))

    def dequantize(self, q: fx.Node, scale: str | Tensor, zero_point: int, axis: int | None, like: fx.Node) -> fx.Node:
        """The float that integers stand for; what uses only integers leaves it unread."""
        given = self.program.attribute(scale) if isinstance(scale, str) else self.constant(f"{like.name}.scale", scale)
        return self.call(DEQUANTIZE, q, given, zero_point, axis, like=like)

    def same_grid(self, q: fx.Node, source: fx.Node, like: fx.Node) -> fx.Node:
        """Dequantize `q` as the dequantize node `source` does."""
        scale = source.args[1]
        assert isinstance(scale, fx.Node)
        return self.dequantize(q, str(scale.target), int(source.args[2]), None, like)  # type: ignore[arg-type]

    def accumulate(self, target: Any, *args: Any, scale: Tensor, axis: int | None, like: fx.Node) -> fx.Node | None:
        """An operator that gives int32 and its dequantize; None where a dynamic size leaves it without a bound.

        Raises PassError where it could overflow.
        """
        acc = self.call(target, *args, like=like)
        try:
            reach = accumulator_range(self.program, acc)
        except ValueError:
            self.program.graph.erase_node(acc)
            return None
        assert reach is not None
        if reach.worst_partial_sum >= INT32_LIMIT:
            raise PassError(
                "its accumulator can overflow int32",
                node=like,
                expected=f"sums below {INT32_LIMIT}",
                found=f"up to {reach.worst_partial_sum}",
                hint=f"leave it float: Quantize(..., skip=({like.name!r},)), or quantize its weight to fewer bits",
            )
        return self.dequantize(acc, scale, 0, axis, like)

    def weight(self, node: fx.Node) -> fx.Node:
        """A constant on its grid, as int8 and its dequantize. `node` is its fake-quantize."""
        source, scale, zero_point, axis, quant_min, quant_max = node.args
        assert isinstance(source, fx.Node)
        values = [self.program.constant(argument) for argument in (source, scale, zero_point)]
        tensor, step, zero = (value.detach() for value in values if value is not None)
        stored = quantize_to_grid(tensor, step, zero, axis, quant_min, quant_max).to(torch.int8)  # type: ignore[arg-type]
        q = self.parameter(f"{source.target}_int8", stored)
        self.weights[str(q.target)] = str(source.target)
        assert isinstance(scale, fx.Node)
        return self.dequantize(q, str(scale.target), int(zero.flatten()[0]), axis, node)  # type: ignore[arg-type]

    def rename_weights(self) -> None:
        """Give int8 weights the names of the float ones where nothing reads those any more, with their sparsity."""
        sparsity = dict(self.program.sparsity)
        self.program.remove_unused_tensors()
        readers: dict[str, list[fx.Node]] = {}
        for node in self.program.graph.find_nodes(op="get_attr"):
            readers.setdefault(str(node.target), []).append(node)
        taken = self.program.tensors()
        for name, original in self.weights.items():
            if name not in readers:
                continue
            new = name
            if original not in taken:  # a copy, or the old name would stand for it as well
                new = self.program.add_tensor(
                    original, nn.Parameter(self.program.tensor(name).clone(), requires_grad=False)
                )
                taken[new] = self.program.tensor(new)
            for node in readers[name]:
                node.target = new
            if original in sparsity:
                self.program.sparsity[new] = sparsity[original]
        self.program.remove_unused_tensors()

    # -- onto a grid -----------------------------------------------------------------------------------------------

    def on_grid(self, value: fx.Node, grid: IntegerGrid, like: fx.Node) -> fx.Node | None:
        """The int8 of `value` on `grid`, computed from integers; None where it is computed from floats."""
        key = value, grid
        if key not in self.memo:
            found = self._on_grid(value, grid, like)
            if found is None:
                return None
            self.memo[key] = found
        return self.memo[key]

    def _on_grid(self, value: fx.Node, grid: IntegerGrid, like: fx.Node) -> fx.Node | None:
        if value.op == "get_attr":
            tensor = self.program.tensor(str(value.target)).detach()
            return self.parameter(f"{value.target}_int8", grid.quantize(self.program, tensor))
        if value.target is DEQUANTIZE:
            return self._regrid(value, grid, like)
        role = role_of(self.program, value)
        if role is Role.CLAMP and isinstance(value.args[0], fx.Node):
            part = grid.clamped(self.program, *clamp_range(value))
            inner = self.on_grid(value.args[0], part, like)
            if inner is not None:
                return inner
        rule = self.rules.grids.get(value.target)
        found = None if rule is None else rule(self, value, grid)
        if found is None and role in (Role.MOVE, Role.JOIN):
            found = self._move(value, grid, like)
        return self._lookup(value, grid, like) if found is None else found

    def _regrid(self, value: fx.Node, grid: IntegerGrid, like: fx.Node) -> fx.Node | None:
        q, _, zero_point, axis = value.args
        assert isinstance(q, fx.Node)
        step = grid.step(self.program)
        if _dtype(q) is torch.int32:
            return self.requantize(q, along((self.scale(value) / step).float(), q, axis), grid, like)
        if axis is not None:
            return None
        if torch.equal(self.scale(value).reshape(()), step) and zero_point == grid.zero_point:
            return self._within(value, q, grid, like)
        return self._table(value, lambda x: x, grid, like)

    def _within(self, value: fx.Node, q: fx.Node, grid: IntegerGrid, like: fx.Node) -> fx.Node:
        low, high = value_range(self.program, q)
        inside = grid.quant_min <= low and high <= grid.quant_max
        return q if inside else self._table(value, lambda x: x, grid, like)

    def requantize(self, acc: fx.Node, multiplier: Tensor, grid: IntegerGrid, like: fx.Node) -> fx.Node:
        """Accumulators onto a grid; `multiplier` is float32 and broadcasts."""
        given = self.constant(f"{like.name}.multiplier", multiplier)
        return self.call(REQUANTIZE, acc, given, grid.zero_point, grid.quant_min, grid.quant_max, like=like)

    def _table(self, value: fx.Node, function: Any, grid: IntegerGrid, like: fx.Node) -> fx.Node:
        entries = table(self.program, self.scale(value), int(value.args[2]), function, grid)  # type: ignore[arg-type]
        return self.call(INT_LOOKUP, value.args[0], self.constant(f"{like.name}.table", entries), like=like)

    def _lookup(self, value: fx.Node, grid: IntegerGrid, like: fx.Node) -> fx.Node | None:
        """A chain of element-wise operators that starts from one value on a grid."""
        chain = Pointwise.behind(self.program, value)
        source = None if chain is None else self.integer(chain.source)
        if chain is None or source is None or source.args[3] is not None:
            return None
        return self._table(source, chain, grid, like)

    def _move(self, value: fx.Node, grid: IntegerGrid, like: fx.Node) -> fx.Node | None:
        moved: dict[fx.Node, fx.Node] = {}
        for source in operands(self.program, value):
            q = self.on_grid(source, grid, like)
            if q is None:
                return None
            moved[source] = q
        return self.rules.move(self, value, moved, grid.zero_point) if moved else None

    def quantized(self, node: fx.Node, grid: IntegerGrid) -> fx.Node:
        """The integer form of a fake-quantize: computed on integers, or quantized from the float."""
        value = node.args[0]
        assert isinstance(value, fx.Node)
        q = self.on_grid(value, grid, node)
        if q is None:
            q = self._from_float(value, grid, node)
        return self.dequantize(q, grid.scale, grid.zero_point, None, node)

    def _from_float(self, value: fx.Node, grid: IntegerGrid, like: fx.Node) -> fx.Node:
        """Quantize a float. Rounding is monotone, so a clamp before it is a narrower grid."""
        part = grid
        while role_of(self.program, value) is Role.CLAMP and isinstance(value.args[0], fx.Node):
            value, part = value.args[0], part.clamped(self.program, *clamp_range(value))
        scale = self.program.attribute(grid.scale)
        return self.call(QUANTIZE, value, scale, part.zero_point, part.quant_min, part.quant_max, like=like)


def along(multiplier: Tensor, acc: fx.Node, axis: object) -> Tensor:
    """Multipliers of channels, shaped so that they broadcast over accumulators whose channels lie along `axis`."""
    return multiplier.reshape([-1] + [1] * (acc.meta[KEY].dim() - 1 - axis)) if isinstance(axis, int) else multiplier


def _dtype(node: object) -> torch.dtype | None:
    value = node.meta.get(KEY) if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, Tensor) else None
