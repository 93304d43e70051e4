"""What emission rules build with: operators, constants, sizes, casts, and values that stay on an integer grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .dtypes import element_type, tensor_proto

if TYPE_CHECKING:
    from .block_quantization import Blocks
    from .dynamic_quantization import Dynamic
    from .heads import Heads
    from .integer_products import Columns

Dim = Any
"""A size: an int, or a torch.SymInt."""

_MOVED_AS_STORED = frozenset({"DepthToSpace", "Expand", "Tile"})
"""Moves that ONNX Runtime does not see through between DequantizeLinear and QuantizeLinear, but runs on integers."""


class Value(str):
    """The name of an ONNX value that stands for a node of the program, with the node's type."""

    fake: Any
    constant: bool

    def __new__(cls, name: str, fake: Any, constant: bool = False) -> Value:
        value = super().__new__(cls, name)
        value.fake, value.constant = fake, constant
        return value

    @property
    def dtype(self) -> torch.dtype:
        """The element type; a symbolic size is int64."""
        dtype: torch.dtype = self.fake.dtype if isinstance(self.fake, Tensor) else torch.int64
        return dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The sizes, of which some may be torch.SymInt."""
        return tuple(self.fake.shape) if isinstance(self.fake, Tensor) else ()

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class OnnxOptions:
    """How a target wants its ONNX.

    opset: the version of the operators.
    contrib: operators of ONNX Runtime's own may be used.
    int8_activations: products with weights in blocks may quantize activations, block by block, to run in integer.
    unsigned: activations as uint8, 128 above the program's int8 values, instead of int8.
    widen: 4-bit weights, stored as int4, are widened to int8 before anything reads them.
    widen_stored: 4-bit weights that are multiplied with 8-bit activations are stored as int8, the others read as int4.
    fold_clamps: a clamp before a grid is left to the bounds of the integers; else it stays an operator on floats, and
    grids have to span their type.
    float_biases: biases as the floats that their integers stand for.
    move_stored: moves that a runtime does not see through between dequantizing and quantizing are done on integers.
    float8: grids of 8 bits and zero point 0 as float8 (E4M3) of the same reach.
    half_attention: attention between casts to float16, its scale on the query, as GPUs have it in one kernel.
    fast_convolutions: integer convolutions in the form that ONNX Runtime runs fastest: see `convolution_forms`.
    shift_weights: weights of integer convolutions with long sums are stored one step lower, with zero point -1, which
        makes ONNX Runtime multiply matrices, in tiles on AMX.
    whole_attention: attention as the one operator that opset 23 has for it.
    """

    opset: int = 21
    contrib: bool = False
    int8_activations: bool = False
    unsigned: bool = True
    widen: bool = True
    widen_stored: bool = False
    fold_clamps: bool = True
    float_biases: bool = False
    move_stored: bool = True
    float8: bool = False
    half_attention: bool = False
    fast_convolutions: bool = False
    shift_weights: bool = False
    whole_attention: bool = False


@dataclass(frozen=True)
class Stored:
    """A value on a grid: the names of its integers, and of the scale and zero point that they stand for."""

    steps: str
    scale: str
    zero_point: str


@dataclass(frozen=True)
class Tail:
    """A movement that ends what was emitted for a node: `operator(source, *rest)`."""

    operator: str
    source: str
    rest: tuple[str, ...]


@dataclass
class Builder:
    """The ONNX graph while it is built, and the node that is being emitted.

    values: the value of each node, a tuple of them where it has several.
    asked: what an initializer is to be called, where nothing that is read has that name.
    stored: a value on a grid -> its integers. `move` keeps such a value on its grid where `integer` says that an
    integer kernel will read the result.
    kernels: the nodes that integer kernels run.
    tails: see `end_with_move`.
    blocks, columns, dynamic: weights quantized in blocks, weights as right factors of integer products, and values
    quantized at run time, by their nodes.
    heads: a value whose heads are apart -> the value that it is with its heads joined; see `heads.py`.
    """

    program: Program
    options: OnnxOptions
    values: dict[fx.Node, Any] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Callable[[], onnx.TensorProto]] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    tails: dict[fx.Node, Tail] = field(default_factory=dict)
    zero_points: dict[str, str] = field(default_factory=dict)
    blocks: dict[fx.Node, Blocks] = field(default_factory=dict)
    columns: dict[fx.Node, Columns] = field(default_factory=dict)
    dynamic: dict[fx.Node, Dynamic] = field(default_factory=dict)
    heads: dict[str, Heads] = field(default_factory=dict)
    kernels: frozenset[fx.Node] = frozenset()
    integer: bool = False
    _names: set[str] = field(default_factory=set)
    _constants: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _node: fx.Node | None = None

    # -- the node that is being emitted ----------------------------------------------------------------------------

    @property
    def node(self) -> fx.Node:
        """The program's node that is being emitted."""
        assert self._node is not None
        return self._node

    def begin(self, node: fx.Node, *, integer: bool) -> None:
        """Emit for this node from now on."""
        self._node, self.integer = node, integer

    @property
    def result(self) -> Value:
        """The type of the node that is being emitted, under its name."""
        return Value(self.node.name, self.node.meta[KEY])

    def value(self, node: fx.Node) -> Any:
        """The value of a node; of one that was not emitted, its name and type alone."""
        if node in self.values:
            return self.values[node]
        fake = node.meta[KEY]
        if isinstance(fake, list | tuple):
            return tuple(Value(f"{node.name}.{index}", part) for index, part in enumerate(fake))
        return Value(node.name, fake)

    # -- operators -------------------------------------------------------------------------------------------------

    def op(self, operator: str, *inputs: str | None, **attributes: Any) -> str:
        """Add an operator with one output; returns the output's name. An input None is left out."""
        return self.op_many(operator, 1, *inputs, **attributes)[0]

    def op_many(self, operator: str, outputs: int, *inputs: str | None, **attributes: Any) -> tuple[str, ...]:
        """Add an operator with several outputs."""
        name = self.unique(f"{self.node.name}/{operator}")
        names = (name,) if outputs == 1 else tuple(self.unique(f"{name}.{index}") for index in range(outputs))
        given = [str(value) if value is not None else "" for value in inputs]
        while given and not given[-1]:
            given.pop()
        set_attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(onnx.helper.make_node(operator, given, names, name=name, **set_attributes))
        return names

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        found, count = name, 0
        while found in self._names:
            count += 1
            found = f"{name}_{count}"
        self._names.add(found)
        return found

    def rename(self, old: str, new: str, start: int) -> None:
        """Rename a value that only nodes from `start` on make and read."""
        for node in self.nodes[start:]:
            for values in (node.input, node.output):
                for index, value in enumerate(values):
                    if value == old:
                        values[index] = new
        if old in self.stored:
            self.stored[new] = self.stored.pop(old)
        if old in self.heads:
            self.heads[new] = self.heads.pop(old)

    # -- moves -----------------------------------------------------------------------------------------------------

    def move(self, operator: str, x: str, *rest: str | None, **attributes: Any) -> str:
        """An operator that moves or selects values, so that its result is on the grid of `x`."""
        if operator in _MOVED_AS_STORED and (stored := self.moves_as_stored(x)):
            steps = self.op(operator, stored.steps, *rest, **attributes)
            return self.dequantize(steps, stored)
        return self.stay(x, self.op(operator, x, *rest, **attributes))

    def stays_on(self, x: str) -> Stored | None:
        """The integers of `x`, where it is on a grid and what the node gives has to stay on it."""
        return self.stored.get(x) if self.integer else None

    def moves_as_stored(self, x: str) -> Stored | None:
        """The integers of `x`, where a move is to be done on them."""
        return self.stays_on(x) if self.options.move_stored else None

    def stay(self, source: str, moved: str) -> str:
        """Quantize what was moved from a value on a grid by the same parameters, which changes no value.

        Runtimes need both sides of a move quantized to run it, and what follows, in integer.
        """
        stored = self.stays_on(source)
        return moved if stored is None else self.on_grid(moved, stored.scale, stored.zero_point)

    def on_grid(self, x: str, scale: str, zero_point: str, clip: Sequence[str] = (), axis: int | None = None) -> str:
        """Quantize and dequantize; `clip` names the bounds of the integers where the type's own are not those."""
        steps = self.op("QuantizeLinear", x, scale, zero_point, axis=axis)
        steps = self.op("Clip", steps, *clip) if clip else steps
        return self.dequantize(steps, Stored(steps, scale, zero_point), axis)

    def dequantize(self, steps: str, grid: Stored, axis: int | None = None) -> str:
        """The values that stored integers stand for."""
        value = self.op("DequantizeLinear", steps, grid.scale, grid.zero_point, axis=axis)
        if axis is None:
            self.stored[value] = Stored(steps, grid.scale, grid.zero_point)
        return value

    def end_with_move(self, operator: str, source: str, *rest: str) -> str:
        """A move as the last operator of a node. Where the node's result is quantized next, `source` is, before it."""
        self.tails[self.node] = Tail(operator, source, rest)
        return self.op(operator, source, *rest)

    # -- constants -------------------------------------------------------------------------------------------------

    def constant(self, tensor: Tensor) -> str:
        """A constant; equal ones are stored once."""
        key = (tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        if key not in self._constants:
            stored = self.unique(f"constant_{len(self._constants)}")
            self._constants[key] = stored
            self.initializers[stored] = lambda: tensor_proto(stored, tensor)
        return self._constants[key]

    def initializer(self, name: str, make: Callable[[str], onnx.TensorProto]) -> str:
        """A stored tensor that is made only if something reads it; returns its name."""
        stored = self.unique(name)
        self.initializers[stored] = lambda: make(stored)
        return stored

    def initializer_again(self, name: str, make: Callable[[str], onnx.TensorProto]) -> str:
        """A tensor stored in another form too, under its own name if that other form is not read."""
        stored = self.initializer(name, make)
        self.asked[stored] = name
        return stored

    def number(self, value: complex, dtype: torch.dtype) -> str:
        """A scalar constant."""
        return self.constant(torch.tensor(value, dtype=dtype))

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    # -- types -----------------------------------------------------------------------------------------------------

    def cast(self, x: str, dtype: torch.dtype) -> str:
        """Convert to a dtype; nothing where `x` is known to have it."""
        if isinstance(x, Value) and x.dtype == dtype:
            return x
        return self.op("Cast", x, to=element_type(dtype))

    def operand(self, x: Any, dtype: torch.dtype) -> str:
        """A tensor, a symbolic size or a Python number as a value of that dtype."""
        return self.cast(x, dtype) if isinstance(x, Value) else self.number(x, dtype)

    def promoted(self, *operands: Any) -> tuple[torch.dtype, list[str]]:
        """The operands converted to the dtype that ATen promotes them to."""
        samples = [x.fake if isinstance(x, Value) and isinstance(x.fake, Tensor) else _sample(x) for x in operands]
        dtype = torch.result_type(samples[0], samples[1])
        return dtype, [self.operand(x, dtype) for x in operands]

    # -- sizes -----------------------------------------------------------------------------------------------------

    def shape(self, x: str, start: int | None = None, end: int | None = None) -> str:
        """Some of a value's sizes, as an int64 vector."""
        return self.op("Shape", x, start=start, end=end)

    def sizes(self, values: Sequence[Any]) -> str:
        """Sizes, of which some may be symbolic, as an int64 vector."""
        if all(isinstance(value, int) for value in values):
            return self.ints(*values)
        parts = [self.ints(v) if isinstance(v, int) else self.op("Unsqueeze", v, self.ints(0)) for v in values]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def same_size(self, left: Any, right: Any) -> bool:
        """Whether two sizes, each an int, a torch.SymInt or a Value of one, are known to be equal."""
        expression = self.program.shapes.expression
        return expression(_size(left)) == expression(_size(right))


def _size(value: Any) -> Any:
    return value.fake if isinstance(value, Value) else value


def _sample(value: Any) -> Any:
    return 1 if isinstance(value, Value) else value
