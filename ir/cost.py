"""What a program costs: multiply-accumulates, parameters, bytes, and the memory that its activations need at once.

Everything is read from the shapes in the graph; nothing runs. Dynamic dimensions have the sizes that the caller gives,
else 1 (or the least size they may have), and so do sizes that depend on data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from .block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from .errors import SignatureError
from .integer_operators import DEQUANTIZE, QUANTIZE, REQUANTIZE
from .macs import Sizes, multiply_accumulates
from .operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from .shapes import KEY

if TYPE_CHECKING:
    from .program import Program

_BIAS_BITS = 32
_CONVERSIONS = frozenset({FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, FAKE_QUANTIZE_BLOCKS, QUANTIZE, DEQUANTIZE})
_ROUNDINGS = frozenset({FAKE_QUANTIZE, REQUANTIZE})
"""Operators that a kernel applies to what it computed, before that is stored."""


@dataclass(frozen=True)
class NodeCost:
    """The cost of one node.

    macs: multiply-accumulates; a product with padding counts, additions of a bias and elementwise operators do not.
    parameters: values of the parameters that this node is the first to use; scales and zero points are not counted.
    parameter_bytes: what those parameters, with buffers, scales and zero points, take in storage: a tensor behind a
        fake-quantize counts at its quantized width (int8: one byte a value, int4: half), any other at its dtype's.
    activation_bytes: memory that the node's result takes; 0 for views, and for values computed from parameters alone.
    """

    macs: int = 0
    parameters: int = 0
    parameter_bytes: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True)
class Cost:
    """The cost of each node by name, and of the whole program; a tied tensor is counted once.

    peak_activation_bytes: the most memory that inputs and intermediate results take at one moment when the operators
        run in graph order, each result into memory of its own that is free again after its last use. Views and
        reshapes take none. A value that is read through one fake-quantize alone lives at its quantized width, and so
        does an accumulator that is requantized.
    """

    nodes: Mapping[str, NodeCost]
    macs: int
    parameters: int
    parameter_bytes: int
    peak_activation_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters in {self.parameter_bytes:,} bytes, {self.macs:,} multiply-accumulates, "
            f"{self.peak_activation_bytes:,} bytes of activations at the peak"
        )


def cost(program: Program, sizes: Mapping[str, int] | None = None) -> Cost:
    """The cost of a program whose dynamic dimensions have the given sizes.

    Raises SignatureError for a size that the program's dimension may not have.
    """
    evaluate = _evaluator(program, sizes or {})
    macs = {node: multiply_accumulates(node, evaluate) for node in program.graph.nodes}
    memory = _allocations(program, evaluate)
    parameters, stored = _parameters(program)
    nodes = {
        node.name: NodeCost(macs[node], parameters.get(node, 0), stored.get(node, 0), memory.get(node, 0))
        for node in program.graph.nodes
    }
    return Cost(
        nodes,
        macs=sum(macs.values()),
        parameters=sum(parameters.values()),
        parameter_bytes=sum(stored.values()),
        peak_activation_bytes=_peak(program, memory),
    )


def _evaluator(program: Program, sizes: Mapping[str, int]) -> Sizes:
    """A function from a tensor of the graph to its sizes as numbers."""
    dims = program.signature.dims
    for name, size in sizes.items():
        if name not in dims:
            raise SignatureError(f"there is no dynamic dimension {name!r}", expected=", ".join(dims) or "none")
        if size not in dims[name]:
            raise SignatureError(f"dimension {name!r} cannot be {size}", expected=str(dims[name]), found=size)
    chosen = {name: sizes.get(name, max(1, span.low)) for name, span in dims.items()}
    return lambda tensor: tuple(program.shapes.evaluate(size, chosen) for size in tensor.shape)


# -- parameters ------------------------------------------------------------------------------------------------------


def _parameters(program: Program) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
    """The number of parameters, and the bytes of all tensors, by the node that is the first to use them."""
    reads: dict[int, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        reads.setdefault(id(program.tensor(str(node.target))), []).append(node)
    counts: dict[fx.Node, int] = {}
    stored: dict[fx.Node, int] = {}
    for nodes in reads.values():
        tensor = program.tensor(str(nodes[0].target))
        uses = [(user, node) for node in nodes for user in node.users]
        owner = min((_reader(node) for node in nodes), default=nodes[0])
        trained = isinstance(tensor, nn.Parameter) and not all(_places_grid(user, node) for user, node in uses)
        counts[owner] = counts.get(owner, 0) + (tensor.numel() if trained else 0)
        bits = max((_stored_bits(user, node, tensor) for user, node in uses), default=8 * tensor.element_size())
        stored[owner] = stored.get(owner, 0) + -(-tensor.numel() * bits // 8)
    return counts, stored


def _reader(node: fx.Node) -> fx.Node:
    """The first operator that computes with a parameter, quantized or not; the read itself where there is none."""
    reader = min((user for user in node.users if user.op != "output"), default=node)
    return _reader(reader) if reader is not node and _quantizes_constant(reader) else reader


def _quantizes_constant(node: fx.Node) -> bool:
    return node.target in _CONVERSIONS and getattr(node.args[0], "op", "") == "get_attr"


def _places_grid(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` takes `node` as a scale or zero point."""
    return user.target in _CONVERSIONS and user.args[0] is not node


def _stored_bits(user: fx.Node, node: fx.Node, tensor: Tensor) -> int:
    """Bits a value in which `user` lets a tensor be stored."""
    if _places_grid(user, node):
        zero_points = user.target is FAKE_QUANTIZE_BLOCKS and user.args[2] is node
        return _grid_bits(user) if zero_points else 8 * tensor.element_size()
    if user.target is FAKE_QUANTIZE_BIAS:
        return _BIAS_BITS
    return _grid_bits(user) if user.target in (FAKE_QUANTIZE, FAKE_QUANTIZE_BLOCKS) else 8 * tensor.element_size()


def _grid_bits(node: fx.Node) -> int:
    """The width of a fake-quantize's grid: 8 for -127..127 and for -128..127, 4 for -7..7."""
    quant_min, quant_max = (int(bound) for bound in node.args[-2:])  # type: ignore[arg-type]  # by its schema
    return (quant_max - quant_min).bit_length()


# -- activations -----------------------------------------------------------------------------------------------------


def _allocations(program: Program, sizes: Sizes) -> dict[fx.Node, int]:
    """The bytes that each node's result takes, for those that take memory of their own."""
    constants: set[fx.Node] = set()
    memory: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and constants.issuperset(node.all_input_nodes)):
            constants.add(node)
        elif node.op != "output" and _shared_with(node) is None:
            memory[node] = sum(_bytes(node, tensor, sizes) for tensor in _tensors(node.meta[KEY]))
    return memory


def _bytes(node: fx.Node, tensor: Tensor, sizes: Sizes) -> int:
    count = 1
    for size in sizes(tensor):
        count *= size
    users = list(node.users)
    if len(users) == 1 and users[0].target in _ROUNDINGS and users[0].args[0] is node:
        return -(-count * (_grid_bits(users[0]) if users[0].target is FAKE_QUANTIZE else 8) // 8)
    return count * tensor.element_size()


def _shared_with(node: fx.Node) -> fx.Node | None:
    """The node whose memory a view shows, or that a fake-quantize rounds in place; None for a value of its own."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    source = node.all_input_nodes[0]
    if getattr(node.target, "__name__", "") == "getitem":
        return source
    if node.target in _ROUNDINGS or node.target is FAKE_QUANTIZE_DYNAMIC:
        return source if list(source.users) == [node] else None
    schema = getattr(node.target, "_schema", None)
    aliased = schema is not None and any(value.alias_info is not None for value in schema.returns)
    kinds = {tensor.dtype for value in (source, node) for tensor in _tensors(value.meta[KEY])}
    return source if aliased and len(kinds) == 1 else None  # `to` is a view only where it keeps the dtype


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _peak(program: Program, memory: Mapping[fx.Node, int]) -> int:
    """The most bytes alive at once. Inputs belong to the caller and stay; results stay to the end."""
    owners = {node: _owner(node) for node in program.graph.nodes}
    last: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        last[owners[node]] = node
        for source in node.all_input_nodes:
            last[owners[source]] = node
    ending: dict[fx.Node, list[fx.Node]] = {}
    for owner, node in last.items():
        if owner.op == "call_function" and owner in memory:
            ending.setdefault(node, []).append(owner)
    live = peak = sum(memory[node] for node in program.placeholders)
    for node in program.graph.nodes:
        live += memory.get(node, 0) if node.op == "call_function" else 0
        peak = max(peak, live)
        live -= sum(memory[owner] for owner in ending.get(node, ()))
    return peak


def _owner(node: fx.Node) -> fx.Node:
    """The node whose memory holds this one's value."""
    shared = _shared_with(node)
    while shared is not None:
        node, shared = shared, _shared_with(shared)
    return node
