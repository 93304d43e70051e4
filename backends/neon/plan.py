"""From a program of the integer stage to kernel calls on buffers."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from tersor.ir import integer_operators as ops
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .fuse import fuse_sums
from .layout import NO_BORDER, Affine, Border, Layout
from .nests import Nest, nests
from .places import places
from .steps import Copy, Fill, FromBlocks, Step, ToBlocks, Walk
from .views import CASTS, MOVEMENTS, Buffer, Elements, Run, filled_with, logical_offsets, moved, runs, to_planes

aten = torch.ops.aten

BY_IMAGE = frozenset({ops.INT_CONV, ops.INT_MAX_POOL, ops.INT_SUM_POOL})
ELEMENTWISE = frozenset({ops.INT_ADD, ops.INT_LOOKUP, ops.INT_MUL})
"""Planned image by image; the latter where they have rows and columns."""

LEAST = -128
"""What the border of a maximum holds: it changes none."""


@dataclass(frozen=True)
class Plan:
    """Kernel calls in order, the buffers that they use, and what each input and output is."""

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]


@dataclass
class Planner:
    """Builds a plan. `block` is how many channels the instruction set's kernels take together, `isa` its name."""

    program: Program
    isa: str
    block: int
    rules: dict[object, Callable[[Planner, fx.Node], None]]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    copies: dict[tuple[bytes, int | None, Border, int], Walk] = field(default_factory=dict)
    sample: tuple[int, int] | None = None
    """Which image is planned, and of how many, where a rule takes one at a time."""

    def plan(self) -> Plan:
        """Plan every node, in graph order."""
        given = places(self.program)
        for node in self.program.graph.nodes:
            if node.op != "call_function" or given.get(node, node) is not node:
                continue
            rule = self.rules.get(node.target)
            if rule is not None and (images := self._images(node)) > 1:
                self._one_by_one(rule, node, images)
            elif rule is not None:
                rule(self, node)
            elif node.target in MOVEMENTS:
                self.values[node] = moved(node, self._moving)
            elif node.target in CASTS:
                self.values[node] = self.value(node.args[0])
        return Plan(fuse_sums(self.steps), tuple(self.buffers))

    def _images(self, node: fx.Node) -> int:
        """How many images a node gives that is planned image by image: every operand has as many."""
        acc = node.args[0]
        core = acc if node.target is ops.REQUANTIZE and isinstance(acc, fx.Node) else node
        shape = self.shape(node) if isinstance(node.meta[KEY], torch.Tensor) else ()
        walked = core.target in BY_IMAGE or (core.target in ELEMENTWISE and len(shape) == 4)
        inputs = [source for source in core.all_input_nodes if source.op != "get_attr"]
        same = all(self.shape(source)[:1] == shape[:1] for source in inputs)
        return shape[0] if walked and same and len(shape) > 2 else 1

    def _one_by_one(self, rule: Callable[[Planner, fx.Node], None], node: fx.Node, images: int) -> None:
        """Kernels walk one image, whose border is its own; a batch is as many buffers seen as one value."""
        parts, first = [], len(self.steps)
        for index in range(images):
            self.sample = index, images
            rule(self, node)
            parts.append(self.values.pop(node))
        self.sample = None
        self.steps[first:] = [replace(step, macs=step.macs // images) for step in self.steps[first:]]
        self.values[node] = np.concatenate(parts)

    def value(self, node: fx.Node) -> Any:
        """The elements of a value; those of a constant, the first time that it is read, in a buffer of its own."""
        if node.op == "placeholder":  # of numbers that choose rows: its own places
            return np.arange(node.meta[KEY].numel(), dtype=np.int64).reshape(self.shape(node))
        if node not in self.values:
            data = self.constant(node)
            assert data is not None, f"%{node.name} was not planned"
            self.values[node] = self._new(node.name, data.shape, None, NO_BORDER, 0, data).view()
        if self.sample is not None and node.op != "get_attr":
            return self.values[node][self.sample[0] : self.sample[0] + 1]
        return self.values[node]

    def _moving(self, node: fx.Node) -> Any:
        """What a movement is given: the elements of a value, and as they are the constants that it chooses by."""
        data = self.constant(node)
        return self.value(node) if data is None or data.dtype == np.int8 else data

    # -- buffers ---------------------------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The sizes of a value. support.py: none is dynamic."""
        sizes = tuple(int(size) for size in node.meta[KEY].shape)
        return sizes if self.sample is None or node.op == "get_attr" else (1, *sizes[1:])

    def constant(self, argument: object) -> np.ndarray[Any, Any] | None:
        """The numbers behind a node that reads a tensor of the program."""
        tensor = self.program.constant(argument)
        return None if tensor is None else tensor.detach().numpy()

    def allocate(
        self, name: str, shape: Sequence[int], axis: int | None, border: Border = NO_BORDER, fill: int = 0
    ) -> Buffer:
        """A new buffer for a tensor whose channels lie along `axis`, or row-major. Its border is filled."""
        buffer = self._new(name, shape, axis, border, fill)
        if border != NO_BORDER:
            self.steps.append(Fill(name, (), Walk.whole(buffer), fill, not buffer.layout.mostly_border))
        return buffer

    def _new(
        self,
        name: str,
        shape: Sequence[int],
        axis: int | None,
        border: Border,
        fill: int,
        data: np.ndarray[Any, Any] | None = None,
    ) -> Buffer:
        channels, rows, width = to_planes(shape, axis)[1]
        layout = Layout(channels, rows, width, 1 if axis is None else self.block, border)
        base = self.buffers[-1].base + self.buffers[-1].count if self.buffers else 0
        offsets = logical_offsets(layout, shape, axis)
        self.buffers.append(Buffer(name, base, tuple(shape), layout, offsets, fill, data))
        return self.buffers[-1]

    def result(self, node: fx.Node, axis: int | None) -> Buffer:
        """The buffer of a node's result, with the border that its readers need."""
        border, fill = NO_BORDER, 0
        for user in node.users if axis == 1 else ():
            wanted, value = padding_of(user)
            if wanted != NO_BORDER and (border == NO_BORDER or value == fill):
                border, fill = border.union(wanted), value
        buffer = self.allocate(node.name, self.shape(node), axis, border, fill)
        self.values[node] = buffer.view()
        return buffer

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, value: fx.Node | Elements, axis: int | None, border: Border = NO_BORDER, fill: int = 0) -> Walk:
        """A value as channels along `axis`, or row-major; copied where it does not lie like that."""
        elements: Elements = self.value(value) if isinstance(value, fx.Node) else value
        found = self.in_place(elements, axis, border, fill)
        if found is not None:
            return found
        key = np.array(elements.shape).tobytes() + elements.tobytes(), axis, border, fill
        if key not in self.copies:
            self.copies[key] = self._copied(elements, axis, border, fill)
        return self.copies[key]

    def owner(self, element: int) -> Buffer:
        """The buffer that an element is of."""
        return self.buffers[bisect.bisect_right(self.buffers, element, key=lambda buffer: buffer.base) - 1]

    def in_place(self, elements: Elements, axis: int | None, border: Border = NO_BORDER, fill: int = 0) -> Walk | None:
        """A value where it lies, if a kernel can walk it there as channels along `axis`."""
        low, high = int(elements.min()), int(elements.max())
        if low < 0:
            return None
        buffer = self.owner(low)
        if buffer is not self.owner(high):
            return None
        if border != NO_BORDER:
            whole = elements.size == buffer.count and np.array_equal(elements.reshape(-1), buffer.view().reshape(-1))
            if not whole or not buffer.layout.border.covers(border) or buffer.fill != fill:
                return None
        order, sizes = to_planes(elements.shape, axis)
        offsets = buffer.offsets.reshape(-1)[elements - buffer.base]
        block = 1 if axis is None else self.block
        affine = Affine.of(np.transpose(offsets, order).reshape(sizes), block)
        inside = affine is not None and (sizes[0] % block == 0 or self._has_tail(buffer, affine, sizes))
        if not inside or affine is None:
            return None
        # The strides of a plane of one row do not say how far away its border is: those of the buffer do.
        return Walk(buffer, affine) if border == NO_BORDER else Walk.whole(buffer)

    def _has_tail(self, buffer: Buffer, affine: Affine, sizes: tuple[int, int, int]) -> bool:
        """Whether the channels that fill up the last block lie within the buffer too."""
        blocks = -(-sizes[0] // self.block)
        last = affine.first + (blocks - 1) * affine.block_bytes + (sizes[1] - 1) * affine.row_bytes
        return last + sizes[2] * self.block <= buffer.layout.size

    def _copied(self, elements: Elements, axis: int | None, border: Border, fill: int) -> Walk:
        target = self.allocate(f"copy_{len(self.buffers)}", elements.shape, axis, border, fill)
        self.copy_into(target, elements, axis)
        return Walk.whole(target)

    def copy_into(self, target: Buffer, elements: Elements, axis: int | None) -> None:
        """Write a value into a buffer of its shape, whose channels lie along `axis`."""
        if self._converted(elements, axis, target):
            return
        constants = np.unique(filled_with(elements[elements < 0]))
        for value in constants:
            self.steps.append(Fill(target.name, (), Walk.whole(target), int(value)))
        if constants.size and target.layout.border != NO_BORDER:  # that filled its border too
            self.steps.append(Fill(target.name, (), Walk.whole(target), target.fill, True))
        bases = np.array([buffer.base for buffer in self.buffers])
        owners = np.where(elements < 0, -1, np.searchsorted(bases, elements, side="right") - 1)
        sources = [self.buffers[index] for index in np.unique(owners) if index >= 0]
        parts = tuple(_part(target, source, elements) for source in sources)
        self.steps.append(Copy(target.name, tuple(map(Walk.whole, sources)), Walk.whole(target), parts))

    def _converted(self, elements: Elements, axis: int | None, target: Buffer) -> bool:
        """Whether a conversion between row-major and blocked does the whole copy, of images one at a time."""
        if elements.ndim < 3 or elements.shape[0] != 1 or axis not in (None, 1):
            return False
        source = self.in_place(elements, 1 if axis is None else None)
        if source is None or source.buffer is target:
            return False
        if axis is None:
            sizes = to_planes(elements.shape, 1)[1]
            self.steps.append(FromBlocks(target.name, (source,), Walk.whole(target), *sizes))
        else:
            self.steps.append(ToBlocks(target.name, (source,), Walk.whole(target)))
        return True


def _part(target: Buffer, source: Buffer, elements: Elements) -> tuple[Nest, ...] | tuple[Run, ...]:
    """How what a value has of `source` gets into `target`."""
    chosen = (elements >= source.base) & (elements < source.base + source.count)
    sides = [
        np.flatnonzero(chosen.any(axis=tuple(i for i in range(chosen.ndim) if i != axis)))
        for axis in range(chosen.ndim)
    ]
    box = np.ix_(*sides)
    offsets = source.offsets.reshape(-1)
    if chosen[box].all():
        found = nests(target.offsets[box], offsets[elements[box] - source.base])
        if found is not None:
            return tuple(found)
    return tuple(runs(target.offsets[chosen], offsets[elements[chosen] - source.base]))


def padding_of(user: fx.Node) -> tuple[Border, int]:
    """The border that a reader wants around its input, and what it is to hold."""
    if user.target is ops.INT_CONV:
        top, left = pair(user.args[5], 0)
        return Border(top, left, top, left), integer(user.args[3])
    if user.target is ops.INT_MAX_POOL:
        top, left = pair(user.args[3], 0)
        return Border(top, left, top, left), LEAST
    own = explicit_padding(user)
    if own is None:
        return NO_BORDER, 0
    border = NO_BORDER
    for reader in user.users:
        border = border.union(own.around(padding_of(reader)[0]))
    return border, integer(user.args[2])


def explicit_padding(node: object) -> Border | None:
    """The border that a pad of images adds, where only convolutions that pad with the same value read it."""
    if not isinstance(node, fx.Node) or node.target is not aten.constant_pad_nd.default:
        return None
    sides = [*(int(side) for side in node.args[1]), 0, 0, 0, 0]  # type: ignore[union-attr, arg-type]
    left, right, top, bottom = sides[:4]
    fits = node.meta[KEY].dim() > 2 and not any(sides[4:]) and min(sides) >= 0
    fits = fits and (node.meta[KEY].dim() > 3 or not (top or bottom))
    same = all(user.target is ops.INT_CONV and user.args[3] == node.args[2] for user in node.users)
    return Border(top, left, bottom, right) if fits and same else None


def integer(value: object) -> int:
    """An argument that the operator's schema says is an integer."""
    assert isinstance(value, int)
    return value


def pair(values: Any, missing: int) -> tuple[int, int]:
    """One or two numbers as those of rows and of columns."""
    values = [int(value) for value in values]
    return (missing, values[0]) if len(values) == 1 else (values[0], values[1])
