"""The graph under construction: what ONNX names stand for, and how operators are added to the program.

Every call of an operator passes through `Importer.call`. It computes at once what is known, keeps sizes as numbers and
size nodes, and only otherwise adds a node, with its shape and its origin in the file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from tersor.ir.errors import TraceError
from tersor.ir.names import legal
from tersor.ir.origin import KEY as ORIGIN
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .budget import Budget
from .dtypes import DTYPES, GRIDS
from .folding import PICKS, evaluate, foldable
from .inference import WORK_OF_NEW, Inference
from .model_file import ModelFile, identifier, signature_of
from .shape_arithmetic import fold_sizes
from .tensors import Reader
from .values import Known, Quantized, Size, Sizes, Value

aten = torch.ops.aten
T = TypeVar("T")

_LARGEST_SIZE = (1 << 63) - 1
_DEEPEST_NAME = 32
"""Parts of a tensor's name: each is a module within the one before."""


class Importer:
    """One model on its way to a Program."""

    def __init__(self, file: ModelFile, budget: Budget) -> None:
        self.file = file
        self.budget = budget
        self.reader = Reader(file.path.parent, self.budget)
        signature = signature_of(file)
        graph = fx.Graph()
        for spec in signature.inputs:
            node = graph.placeholder(identifier(spec.name))
            node.target = node.name  # which is no keyword, no builtin and nothing that generated code uses
        self.program = Program.build(graph, {}, signature, name=identifier(file.graph.name or file.path.stem))
        self.inference = Inference(self.program)
        self.origin = Origin(str(file.path))
        self.fresh: set[fx.Node] = set()
        """Nodes that the current ONNX node added; the one that it gives takes the name of its output."""
        self._tensors: dict[Known | Sizes | Quantized, fx.Node] = {}
        self._known: dict[fx.Node, Known] = {}
        self.dynamic: dict[fx.Node, Any] = {}
        """What is known of integers that are made when the model runs: see rules/dynamic_quantization.py."""
        self.attention: dict[fx.Node, Any] = {}
        """What is known of results of attention, some rows of which may become zero: see rules/attention.py."""
        self._sizes: dict[str, fx.Node] = {}
        self._once: dict[Hashable, Any] = {}
        self._tensor_names: set[str] = set()

    # -- operators -------------------------------------------------------------------------------------------------

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """The result of an operator: known or sizes where its inputs are, else a node; a tuple where it gives several.

        Raises VerificationError where the operator does not take these inputs.
        """
        kwargs = kwargs or {}
        leaves: list[Any] = []
        replace_values((args, kwargs), leaves.append)
        if foldable(target, leaves):
            result = evaluate(target, args, kwargs, self.budget)
            if isinstance(result, Known) and result.trainable and target in PICKS:
                return replace(result, picked=(target, args, kwargs))
            if result is not None:
                return result
        elif any(isinstance(leaf, Sizes) for leaf in leaves):
            folded = fold_sizes(self, target, args, kwargs)
            if folded is not None:
                return folded
        args, kwargs = replace_values((args, kwargs), self.node)
        return self._unpacked(self.add(target, args, kwargs))

    def add(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """A new node, whatever is known about its inputs."""
        name = str(getattr(target, "_opname", getattr(target, "__name__", "call")))
        args = _without_defaults(target, args)
        node = self.program.graph.create_node("call_function", target, args, kwargs or {}, name)
        try:
            node.meta[KEY] = self.inference.value(node)
            self.budget.spend(self.inference.work)
        except BaseException:
            self.program.graph.erase_node(node)
            raise
        node.meta[ORIGIN] = self.origin
        self.fresh.add(node)
        return node

    def _unpacked(self, node: fx.Node) -> Any:
        value = node.meta[KEY]
        if not isinstance(value, tuple | list):
            return node
        return tuple(self.add(operator.getitem, (node, index)) for index in range(len(value)))

    # -- sizes -----------------------------------------------------------------------------------------------------

    def size(self, function: Callable[..., Any], *operands: Size) -> Size:
        """Arithmetic on sizes. Equal sizes are one node, wherever they were computed."""
        if all(isinstance(operand, int) for operand in operands):
            result = int(function(*operands))
            if abs(result) > _LARGEST_SIZE:
                raise TraceError("a size is beyond 64 bits", expected=f"at most {_LARGEST_SIZE}")
            return result
        return self._one_node(self.add(function, operands))

    def product(self, sizes: Sequence[Size]) -> Size:
        """The number of elements of a tensor of these sizes."""
        product: Size = 1
        for size in sizes:
            product = self.size(operator.mul, product, size)
        return product

    def size_of(self, value: Value, axis: int) -> Size:
        """The size of a value along an axis."""
        size = self.meta(value).shape[axis]
        if isinstance(size, int):
            return size
        expression = self.program.shapes.expression(size)
        if isinstance(expression, int):
            return expression
        return self._sizes.get(expression) or self._one_node(self.add(aten.sym_size.int, (self.node(value), axis)))

    def _one_node(self, node: fx.Node) -> Size:
        expression = self.program.shapes.expression(node.meta[KEY])
        if isinstance(expression, str):
            kept = self._sizes.setdefault(expression, node)
            if kept is node:
                return node
        else:
            kept = None
        self.fresh.discard(node)
        self.program.graph.erase_node(node)
        return expression if isinstance(expression, int) else self._sizes[expression]

    # -- values ----------------------------------------------------------------------------------------------------

    def meta(self, value: Value) -> Tensor:
        """A tensor with the value's sizes and dtype, which may hold no data."""
        if isinstance(value, fx.Node):
            meta: Tensor = value.meta[KEY]
            return meta
        if isinstance(value, Known):
            return value.tensor
        if isinstance(value, Sizes):
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        if isinstance(value, Quantized):
            with self.program.shapes.mode:
                return torch.empty_like(value.source.meta[KEY], dtype=DTYPES.get(value.onnx_type, torch.int8))
        raise TraceError("a sequence stands where a tensor is expected")

    def node(self, value: Value) -> fx.Node:
        """The value as a node of the program, once however often it is asked for."""
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, tuple):
            raise TraceError("a sequence stands where a tensor is expected")
        if value not in self._tensors:
            self._tensors[value] = self._made(value)
        return self._tensors[value]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once a key: a weight that two nodes transpose stays one tensor."""
        if key not in self._once:
            self._once[key] = make()
        made: T = self._once[key]
        return made

    def _made(self, value: Known | Sizes | Quantized) -> fx.Node:
        if isinstance(value, Sizes):
            return self._stack(value)
        if isinstance(value, Known) and value.picked is not None:
            return self._picked(value)
        return self._quantize(value) if isinstance(value, Quantized) else self._attribute(value)

    def _picked(self, value: Known) -> fx.Node:
        """Items of a parameter: the operator that picks them, under the name of what it gives."""
        assert value.picked is not None, "asked by the caller"
        target, args, kwargs = value.picked
        args, kwargs = replace_values((args, kwargs), self.node)
        node = self.add(target, args, kwargs)
        if value.name:
            self.fresh.discard(node)
            node._rename(identifier(value.name))
        self._known[node] = value
        return node

    def known(self, value: Value) -> Known | None:
        """What is known of a value, also where it is a node by now."""
        return value if isinstance(value, Known) else self._known.get(value) if isinstance(value, fx.Node) else None

    def _attribute(self, known: Known) -> fx.Node:
        tensor = nn.Parameter(known.tensor) if known.trainable else known.tensor
        self.budget.spend(WORK_OF_NEW)
        name = self.program.add_tensor(self._tensor_name(known.name or "constant"), tensor)
        self._tensor_names.add(name)
        node = self.program.attribute(name)
        node.meta[ORIGIN] = self.origin
        self._known[node] = known
        return node

    def _tensor_name(self, name: str) -> str:
        """A legal dotted name; its dots go where a prefix is the name of another tensor, as `a` is of `a.b`."""
        name = legal(name)
        path = name.split(".")
        if len(path) > _DEEPEST_NAME:
            return name.replace(".", "_")
        nested = any(".".join(path[:end]) in self._tensor_names for end in range(1, len(path)))
        return name.replace(".", "_") if nested else name

    def _stack(self, sizes: Sizes) -> fx.Node:
        """Sizes as a tensor, for an operator that computes with them."""
        items = [self.add(aten.scalar_tensor.default, (item,), {"dtype": sizes.dtype}) for item in sizes.items]
        if sizes.shape == ():
            return items[0]
        stacked = self.add(aten.stack.default, (items,))
        return stacked if len(sizes.shape) == 1 else self.add(aten.reshape.default, (stacked, list(sizes.shape)))

    def _quantize(self, value: Quantized) -> fx.Node:
        """The integers themselves, where they do not meet the DequantizeLinear that would give a fake_quantize."""
        grid = GRIDS[value.onnx_type]
        dtype = DTYPES.get(value.onnx_type, torch.uint8 if grid.shift else torch.int8)
        rank = value.source.meta[KEY].dim()
        scale, zero = (_along(tensor.tensor.float(), value.axis, rank) for tensor in (value.scale, value.zero_point))
        steps = self.call(aten.round.default, (self.call(aten.div.Tensor, (value.source, Known(scale))),))
        moved = self.call(aten.add.Tensor, (steps, Known(zero)))
        low, high = value.bounds or (grid.low - grid.shift, grid.high - grid.shift)
        clamped = self.call(aten.clamp.default, (moved, low, high))
        result: fx.Node = self.call(aten._to_copy.default, (clamped,), {"dtype": dtype})
        return result

    # -- names -----------------------------------------------------------------------------------------------------

    def named(self, value: Value, name: str) -> Value:
        """The value under the name of the ONNX output that it is: nodes made for it are called so."""
        if isinstance(value, fx.Node) and value in self.fresh:
            self.fresh.discard(value)
            value._rename(identifier(name))
        if isinstance(value, Known) and not value.name:
            return replace(value, name=name)
        return value


def replace_values(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each value among nested arguments; numbers and the like stay."""
    if isinstance(tree, fx.Node | Known | Sizes | Quantized):
        return function(tree)
    if isinstance(tree, tuple | list):
        items = [replace_values(item, function) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    if isinstance(tree, dict):
        return {key: replace_values(item, function) for key, item in tree.items()}
    return tree


def _without_defaults(target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positional arguments up to the last that is not the schema's default, as a trace of PyTorch has them."""
    if not isinstance(target, torch._ops.OpOverload):
        return args
    schema = target._schema.arguments
    while args and schema[len(args) - 1].has_default_value() and schema[len(args) - 1].default_value == args[-1]:
        args = args[:-1]
    return args


def _along(values: Tensor, axis: int | None, rank: int) -> Tensor:
    return values if axis is None else values.reshape([-1 if place == axis else 1 for place in range(rank)])
