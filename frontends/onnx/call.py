"""One node of an ONNX graph, as its import rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from onnx import AttributeProto, GraphProto, NodeProto
from torch import Tensor, fx

from tersor.ir.errors import TraceError

from .dtypes import dtype_of
from .shape_arithmetic import as_sizes
from .values import Known, Size, Value

if TYPE_CHECKING:
    from .importer import Importer
    from .scope import Scope

aten = torch.ops.aten


class Call:
    """Inputs, attributes and outputs of a node, and the operators that stand for it.

    A `Value` may be known, or sizes, or a node: a rule need not ask which. It passes values to `call`, which computes
    what can be computed at import.
    """

    def __init__(
        self, importer: Importer, scope: Scope, proto: NodeProto, run: Callable[[GraphProto, Scope], list[Value]]
    ) -> None:
        self.importer = importer
        self.scope = scope
        self.proto = proto
        self.opset = scope.opset(proto.domain)
        self._run = run
        self._read: dict[str, dict[str, Known]] = {}
        self._attributes = {attribute.name: attribute for attribute in scope.attributes_of(proto)}

    # -- inputs ----------------------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def input(self, index: int) -> Value:
        """An input that must be there."""
        if not self.has(index):
            self.refuse(f"input {index} is missing")
        return self.scope.lookup(self.proto.input[index])

    def optional(self, index: int) -> Value | None:
        """An input, or None where it is not given."""
        return self.input(index) if self.has(index) else None

    @property
    def inputs(self) -> list[Value]:
        """Every input; of a variadic operator all are given."""
        return [self.input(index) for index in range(len(self.proto.input))]

    def known(self, index: int) -> Tensor:
        """The value of an input that must be known at import."""
        known = self.importer.known(self.input(index))
        if known is None:
            self.refuse(
                f"input {index} ({self.proto.input[index]!r}) is computed when the model runs",
                expected="a constant, or something computed from constants and shapes",
                hint="make it an initializer of the file, or export the model anew with that value fixed",
            )
        self.importer.budget.spend(known.tensor.numel() >> 10)
        return known.tensor

    def ints(self, index: int) -> list[int]:
        """The numbers of an input that must be known."""
        return [int(item) for item in self.known(index).flatten().tolist()]

    def sizes(self, index: int) -> list[Size]:
        """The items of an integer input: numbers, and nodes where they depend on the sizes of the model's inputs."""
        value = self.input(index)
        sizes = as_sizes(self.importer.known(value) or value)
        if sizes is None:
            self.refuse(
                f"sizes ({self.proto.input[index]!r}) are computed from data",
                expected="constants, or sizes computed from shapes",
                hint="export the model anew with sizes that follow from its inputs' shapes",
            )
        return list(sizes.items)

    def only_reader(self, index: int) -> bool:
        """Whether this node alone reads that input, so that it may be merged with what computed it."""
        return self.scope.readers(self.proto.input[index]) == 1

    def wants(self, index: int) -> bool:
        """Whether the optional output is asked for."""
        return index < len(self.proto.output) and bool(self.proto.output[index])

    # -- types -----------------------------------------------------------------------------------------------------

    def rank(self, value: Value) -> int:
        return self.importer.meta(value).dim()

    def dtype(self, value: Value) -> torch.dtype:
        return self.importer.meta(value).dtype

    def size(self, value: Value, axis: int) -> Size:
        """A size of a value."""
        return self.importer.size_of(value, axis)

    def shape(self, value: Value) -> list[Size]:
        """All sizes of a value."""
        return [self.importer.size_of(value, axis) for axis in range(self.rank(value))]

    def static_shape(self, value: Value) -> list[int]:
        """All sizes of a value, none of which may change from call to call."""
        sizes = self.shape(value)
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) != len(sizes):
            self.refuse("the operator needs sizes that do not change", found=f"sizes {sizes}")
        return numbers

    def static_size(self, value: Value, axis: int) -> int:
        """A size of a value, which may not change from call to call."""
        size = self.size(value, axis)
        if not isinstance(size, int):
            self.refuse("the operator needs a size that does not change", found=f"axis {axis} of size {size}")
        return size

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front. Refuses one that is not there."""
        if not -rank <= axis < max(rank, 1):
            self.refuse("the axis is out of range", expected=f"{-rank} to {rank - 1}", found=axis)
        return axis % rank if rank else 0

    # -- attributes ------------------------------------------------------------------------------------------------

    def has_attr(self, name: str) -> bool:
        return name in self._attributes

    def attr_int(self, name: str, default: int | None = None) -> int:
        """An attribute; one without default must be there."""
        return int(self._attribute(name, AttributeProto.INT, "i", default))

    def attr_float(self, name: str, default: float | None = None) -> float:
        """As `attr_int`. The number is the shortest that is the same in float32: 0.1, not 0.10000000149."""
        return shortest(float(self._attribute(name, AttributeProto.FLOAT, "f", default)), torch.float32)

    def attr_str(self, name: str, default: str | None = None) -> str:
        value = self._attribute(name, AttributeProto.STRING, "s", default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def attr_ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        return [int(item) for item in self._attribute(name, AttributeProto.INTS, "ints", default)]

    def attr_floats(self, name: str, default: Sequence[float] | None = None) -> list[float]:
        return [float(item) for item in self._attribute(name, AttributeProto.FLOATS, "floats", default)]

    def attr_strs(self, name: str, default: Sequence[str] | None = None) -> list[str]:
        found = self._attribute(name, AttributeProto.STRINGS, "strings", default)
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in found]

    def attr_dtype(self, name: str, default: int | None = None) -> torch.dtype:
        """An element type."""
        return dtype_of(self.attr_int(name, default))

    def attr_tensor(self, name: str) -> Known:
        """A tensor attribute, as a constant."""
        proto = self._attribute(name, AttributeProto.TENSOR, "t", None)
        return Known(self.importer.reader.read(proto), onnx_type=proto.data_type)

    def run_graph(self, name: str, inputs: Sequence[Value] = ()) -> list[Value]:
        """Import a sub-graph attribute here; what its outputs stand for."""
        graph: GraphProto = self._attribute(name, AttributeProto.GRAPH, "g", None)
        if len(inputs) != len(graph.input):
            self.refuse(f"{name} takes {len(graph.input)} values", found=len(inputs))
        formal = [value.name for value in graph.input]
        values = dict(zip(formal, inputs, strict=True))
        return self._run(graph, self.scope.child(graph, values, self._read.setdefault(name, {})))

    def _attribute(self, name: str, kind: int, field: str, default: Any) -> Any:
        attribute = self._attributes.get(name)
        if attribute is None:
            if default is None:
                self.refuse(f"attribute {name!r} is missing")
            return default
        if attribute.type != kind:
            names = {number: label for label, number in AttributeProto.AttributeType.items()}
            expected, found = names[kind], names.get(attribute.type)
            self.refuse(f"attribute {name!r} is of the wrong type", expected=expected, found=found)
        return getattr(attribute, field)

    # -- operators -------------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Value:
        """The result of an ATen operator on values, numbers and lists of them."""
        value: Value = self.importer.call(target, args, kwargs)
        return value

    def call_several(self, target: Any, *args: Any, **kwargs: Any) -> list[Value]:
        """The results of an operator that gives several."""
        return list(self.importer.call(target, args, kwargs))

    def node(self, value: Value) -> fx.Node:
        """The value as a node, where a rule looks at what computed it."""
        return self.importer.node(value)

    def frozen(self, value: Value) -> Value:
        """The value, not trained: running statistics, scales."""
        if not isinstance(value, Known) or not value.trainable:
            return value
        frozen: Value = self.importer.once(("frozen", value), lambda: replace(value, trainable=False))
        return frozen

    def scalar(self, value: Value) -> int | float | bool | None:
        """The number that a value is, where it is known and has no dimensions, in its shortest form; else None."""
        known = self.importer.known(value)
        if known is None or known.tensor.dim() or known.trainable or known.tensor.is_complex():
            return None
        number = known.tensor.item()
        return shortest(number, known.tensor.dtype) if isinstance(number, float) else number

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """The value in another type; itself where it has that type."""
        if self.dtype(value) is dtype:
            return value
        return self.call(aten._to_copy.default, value, dtype=dtype)

    def refuse(
        self, reason: str, *, expected: object = None, found: object = None, hint: str | None = None
    ) -> NoReturn:
        """Say that this node cannot be imported. Raises TraceError; the importer adds which node of which file."""
        raise TraceError(reason, expected=expected, found=found, hint=hint)


def shortest(number: float, dtype: torch.dtype) -> float:
    """The decimal number of fewest digits that rounds to the same value of that type."""
    return float(str(np.float32(number))) if dtype is torch.float32 else number
