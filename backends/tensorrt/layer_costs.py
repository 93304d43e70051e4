"""What each layer costs on an NVIDIA GPU, by a roofline: no GPU is asked, and none is here where engines are built.

A product takes the longer of its arithmetic, at the peak of its precision, and its memory traffic, at full bandwidth;
other operators that no kernel fuses take their traffic; each kernel takes its launch. Tensor cores multiply whole
tiles, so channels count rounded up to one; and what int8 convolutions read and write lies in memory in vectors of as
many channels (TensorRT's formats kCHW32, and kCHW4 for up to four), so its traffic does too. The figures are those of
the vendor's data sheet of the NVIDIA A10 (compute capability 8.6), the smallest GPU of the default engines; real
kernels reach about half of such peaks, all alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS
from tersor.ir.example import example_of
from tersor.ir.macs import multiply_accumulates
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.sparsity import NM
from tersor.passes.quantization.roles import WEIGHTS, Role, role_of

from ..clock import Clock
from ..grids import grids, integer_nodes
from ..layer_costs import LayerCosts


@dataclass(frozen=True)
class Roofline:
    """A GPU. macs: multiply-accumulates a second by type; bandwidth: bytes a second; launch: seconds a kernel.

    tile: channels of a tile of tensor cores by type. sparse: how many times faster 2:4 weights are.
    """

    name: str
    macs: dict[str, float]
    bandwidth: float
    launch: float
    tile: dict[str, int]
    sparse: float = 2.0


A10 = Roofline("A10", {"int8": 125e12, "tf32": 31.25e12}, 600e9, 2e-6, {"int8": 32, "tf32": 8})
"""The data sheet gives operations, two a multiply-accumulate: 250 TOPS of int8, 62.5 TFLOPS of TF32, 600 GB/s."""

_VECTORS = (4, 32)
"""Channels of a vector of what int8 convolutions read and write, by format."""

LEAST_CHANNELS = 32
"""Sparse kernels take weights with at least so many channels on both sides."""

_FREE = frozenset({Role.MOVE, Role.CLAMP, Role.HIDE})


def roofline(program: Program, gpu: Roofline = A10) -> LayerCosts:
    """Microseconds by node on the program's example, modelled. program: as it is emitted."""
    model = _Model(program, gpu)
    nodes = {node.name: cost for node in program.graph.nodes if (cost := model.seconds(node) * 1e6) > 0}
    source = f"a roofline of the {gpu.name}'s data sheet; nothing was measured"
    return LayerCosts("us", Clock.MODELLED, sum(nodes.values()), nodes, 1e-6, source)


class _Model:
    def __init__(self, program: Program, gpu: Roofline) -> None:
        self.program, self.gpu = program, gpu
        self.grids = grids(program)
        self.integer = integer_nodes(program, self.grids)
        convolutions = [node for node in program.graph.nodes if self._is_int8_convolution(node)]
        self.maps = {_written(value) for node in convolutions for value in (node, node.args[0])}
        examples = example_of(program)
        self.sizes = {
            str(size): int(value.shape[place])
            for spec, value in zip(program.signature.inputs, examples, strict=True)
            for place, size in enumerate(spec.shape)
            if not isinstance(size, int)
        }

    def seconds(self, node: fx.Node) -> float:
        if node.op != "call_function" or not isinstance(node.meta.get(KEY), Tensor):
            return 0.0
        macs = multiply_accumulates(node, self._shape)
        if not macs:
            return self._traffic_of(node)
        kind = "int8" if node in self.integer else "tf32"
        padded = macs * self._waste(node, self.gpu.tile[kind])
        peak = self.gpu.macs[kind] * (self.gpu.sparse if self._is_sparse(node) else 1.0)
        return max(padded / peak, self._bytes(node) / self.gpu.bandwidth) + self.gpu.launch

    def _traffic_of(self, node: fx.Node) -> float:
        """An operator that multiplies nothing: none where it moves no data, or is fused into the product before it."""
        if node.target is FAKE_QUANTIZE or node.target is FAKE_QUANTIZE_BLOCKS or self._is_constant(node):
            return 0.0
        role = role_of(self.program, node)
        if role in _FREE or (role is not Role.FLOAT and self._follows_product(node)):
            return 0.0
        return self._bytes(node) / self.gpu.bandwidth + self.gpu.launch

    def _follows_product(self, node: fx.Node) -> bool:
        sources = [source for source in node.all_input_nodes if source.op == "call_function"]
        through = [source.args[0] if source.target is FAKE_QUANTIZE else source for source in sources]
        return any(isinstance(s, fx.Node) and multiply_accumulates(s, self._shape) for s in through)

    def _is_constant(self, node: fx.Node) -> bool:
        return all(source.op == "get_attr" for source in node.all_input_nodes)

    def _bytes(self, node: fx.Node) -> float:
        """What a kernel reads and writes: a byte a value on a grid, half of one at 4 bits, four in float."""
        operands = [s for s in node.all_input_nodes if isinstance(s.meta.get(KEY), Tensor)]
        return sum(self._values(node, v) * self._width(v) for v in (node, *operands))

    def _values(self, node: fx.Node, value: fx.Node) -> float:
        """How many values a kernel moves of an operand, or of its result."""
        shape = self._shape(value.meta[KEY])
        if _written(value) in self.maps:
            return math.prod(shape) // shape[1] * _in_whole_vectors(shape[1])
        if not self._is_int8_convolution(node):
            return math.prod(shape)
        if len(shape) == 1:  # a bias
            return _in_whole_vectors(shape[0])
        return math.prod(shape) * self._waste(node, self.gpu.tile["int8"])

    def _is_int8_convolution(self, node: fx.Node) -> bool:
        weight = self._weight(node)
        return node in self.integer and weight is not None and weight.dim() > 2

    def _width(self, node: fx.Node) -> float:
        """Bytes a value, as it is written once what is fused into its kernel is done."""
        if node.target is FAKE_QUANTIZE_BLOCKS:
            return 0.5 if int(node.args[-1]) <= 7 else 1.0  # type: ignore[arg-type]  # by its schema
        last = node
        while last not in self.grids and len(last.users) == 1 and self._is_fused(user := next(iter(last.users))):
            last = user
        return 1.0 if last in self.grids else float(node.meta[KEY].element_size())

    def _is_fused(self, node: fx.Node) -> bool:
        return node in self.grids or role_of(self.program, node) is Role.CLAMP

    def _waste(self, node: fx.Node, tile: int) -> float:
        """How much larger a product is with its channels rounded up to tiles."""
        weight = self._weight(node)
        if weight is None or weight.dim() < 2 or weight.shape[1] == 1:
            return 1.0
        out, inputs = weight.shape[:2]
        if self._is_int8_convolution(node) and self._shape(node.args[0].meta[KEY])[1] == inputs:  # type: ignore[union-attr]
            inputs = _in_whole_vectors(inputs)
        terms = inputs * math.prod(weight.shape[2:])
        return math.ceil(out / tile) * math.ceil(terms / tile) * tile**2 / weight.numel()

    def _is_sparse(self, node: fx.Node) -> bool:
        name = self._weight_name(node)
        if name is None or self.program.sparsity.get(name) != NM(2, 4):
            return False
        return min(self.program.tensor(name).shape[:2]) >= LEAST_CHANNELS

    def _weight_name(self, node: fx.Node) -> str | None:
        layout = WEIGHTS.get(node.target)
        read = None if layout is None else node.args[layout.weight]
        if isinstance(read, fx.Node) and read.target in (FAKE_QUANTIZE, FAKE_QUANTIZE_BLOCKS):
            read = read.args[0]
        return str(read.target) if isinstance(read, fx.Node) and read.op == "get_attr" else None

    def _weight(self, node: fx.Node) -> torch.Tensor | None:
        name = self._weight_name(node)
        return None if name is None else self.program.tensor(name)

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tuple(self.program.shapes.evaluate(size, self.sizes) for size in tensor.shape)


def _written(value: fx.Node) -> fx.Node:
    """What a kernel writes, rather than its grid."""
    source = value.args[0] if value.target is FAKE_QUANTIZE else value
    return source if isinstance(source, fx.Node) else value


def _in_whole_vectors(channels: int) -> int:
    """Channels with those that fill up the last vector."""
    vector = next((vector for vector in _VECTORS if channels <= vector), _VECTORS[-1])
    return -(-channels // vector) * vector
